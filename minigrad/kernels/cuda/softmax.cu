// Softmax of the rows of x (N, C). The reference is Softmax in minigrad/ops/softmax.py:
//
//     y_j = e^(x_j - m) / sum over k of e^(x_k - m), m = max(x)        dx_j = y_j (g_j - sum over k of g_k y_k)
//
// A row of -inf throughout gives zeros. One block has one row; the row is read twice, the second time from the cache.
//
// Below, the same for the rows of attention's scores.

#include "dropout.cuh"

extern "C" __global__ void softmax_forward(const scalar *x, int columns, scalar *y) {
    const long long start = (long long)blockIdx.x * columns;
    float highest = -INFINITY;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) highest = fmaxf(highest, to_float(x[start + j]));
    highest = block_max(highest);
    if (highest == -INFINITY) highest = 0;
    float total = 0;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) total += __expf(to_float(x[start + j]) - highest);
    total = block_sum(total);
    const float scale = total == 0 ? 0 : 1 / total;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        y[start + j] = to_scalar(__expf(to_float(x[start + j]) - highest) * scale);
    }
}

extern "C" __global__ void softmax_backward(const scalar *g, const scalar *y, int columns, scalar *dx) {
    const long long start = (long long)blockIdx.x * columns;
    float sum = 0;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) sum += to_float(g[start + j]) * to_float(y[start + j]);
    sum = block_sum(sum);
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        dx[start + j] = to_scalar(to_float(y[start + j]) * (to_float(g[start + j]) - sum));
    }
}

// Attention's weights. The reference is Attention in minigrad/ops/attention.py, but for the products, which
// batched_attention.py leaves to cuBLASLt. For s = q k^T (B, H, T, U), in float32, and dw = g v^T,
//
//     p = softmax(s / sqrt(D)) over the keys that a query may look at      w = dropout(p)
//     dp = dropout(dw)                                                     ds = p (dp - sum over keys of dp p) / sqrt(D)
//
// where ds is dL/ds. Dropout is dropout.cu's: 8 neighbors in memory share a block of random numbers. So a thread has 8
// neighbors at a time, those at 8 i to 8 i + 7 of the whole array, and where U is no multiple of 8 some of these belong
// to the row before or the one after. One block has one row; of the keys after the causal diagonal nothing is read.

struct Scores {
    int heads, queries, keys;  // H, T, U
    int causal;                // 0 or 1
    float scale;               // 1 / sqrt(D)
};

struct MaskStrides {  // in elements; 0 along an axis that is broadcast
    long long batch, head, row, key;
};

struct Row {
    long long start;    // the place of its first element
    int columns, seen;  // all keys, and how many of them are not hidden by the causal mask
};

__device__ __forceinline__ Row row_of_block(Scores scores) {
    const int query = blockIdx.x % scores.queries, seen = query + 1 + scores.keys - scores.queries;
    return Row{(long long)blockIdx.x * scores.keys, scores.keys, scores.causal ? max(0, seen) : scores.keys};
}

// The columns of the first of this thread's neighbors, up to `end`.
#define EACH_EIGHT(column, row, end) \
    for (int column = 8 * (int)threadIdx.x - (int)(row.start % 8); column < end; column += 8 * blockDim.x)

#ifndef SCALAR_FLOAT32
__device__ __forceinline__ float to_float(float x) { return x; }
#endif

template <class T>
__device__ __forceinline__ void load_eight(float (&x)[8], const T *array, Row row, int column) {
    constexpr int WIDTH = 16 / sizeof(T);
    const T *from = array + row.start + column;
    if (row.columns % 8 == 0) {
        for (int i = 0; i < 8; i += WIDTH) {
            const Pack<T, WIDTH> pack = load<WIDTH>(from + i);
            for (int e = 0; e < WIDTH; e++) x[i + e] = to_float(pack.values[e]);
        }
    } else {
        for (int i = 0; i < 8; i++) x[i] = column + i >= 0 && column + i < row.columns ? to_float(from[i]) : 0;
    }
}

__device__ __forceinline__ void store_eight(const float (&x)[8], scalar *array, Row row, int column) {
    constexpr int WIDTH = 16 / sizeof(scalar);
    scalar *to = array + row.start + column;
    if (row.columns % 8 == 0) {
        for (int i = 0; i < 8; i += WIDTH) {
            Pack<scalar, WIDTH> pack;
            for (int e = 0; e < WIDTH; e++) pack.values[e] = to_scalar(x[i + e]);
            store<WIDTH>(to + i, pack);
        }
    } else {
        for (int i = 0; i < 8; i++) if (column + i >= 0 && column + i < row.columns) to[i] = to_scalar(x[i]);
    }
}

// Scaled scores; -inf where the query may not look. `mask` is that of the row, or null.
__device__ __forceinline__ void load_scores(float (&x)[8], const float *s, Row row, int column, float scale,
                                            const bool *mask, long long mask_stride) {
    if (column < row.seen) load_eight(x, s, row, column);
    for (int i = 0; i < 8; i++) {
        const int key = column + i;
        const bool sees = key >= 0 && key < row.seen && (!mask || mask[key * mask_stride]);
        x[i] = sees ? x[i] * scale : -INFINITY;
    }
}

__device__ __forceinline__ void drop(float (&x)[8], Row row, int column, Dropout dropout) {
    const unsigned long long block = (row.start + column) / 8;
    const uint4 words = random_bits(dropout, (unsigned)block, (unsigned)(block >> 32));
    const unsigned bits[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 8; i++) {
        const bool kept = (bits[i / 2] >> i % 2 * 16 & 0xFFFF) >= (unsigned)dropout.dropped;
        x[i] = kept ? x[i] * dropout.factor : 0;
    }
}

// w is null where nothing is dropped. p may lie where s does: a thread writes what only it has read.
extern "C" __global__ void attention_weights(const float *s, Scores scores, const bool *mask, MaskStrides strides,
                                             Dropout dropout, const unsigned long long *earlier, scalar *p, scalar *w) {
    const Row row = row_of_block(scores);
    const int head = blockIdx.x / scores.queries, query = blockIdx.x % scores.queries;
    if (mask) mask += head / scores.heads * strides.batch + head % scores.heads * strides.head + query * strides.row;
    dropout = later(dropout, earlier);
    float x[8], highest = -INFINITY, total = 0;
    EACH_EIGHT(column, row, row.seen) {
        load_scores(x, s, row, column, scores.scale, mask, strides.key);
        for (int i = 0; i < 8; i++) highest = fmaxf(highest, x[i]);
    }
    highest = block_max(highest);
    if (highest == -INFINITY) highest = 0;
    EACH_EIGHT(column, row, row.seen) {
        load_scores(x, s, row, column, scores.scale, mask, strides.key);
        for (int i = 0; i < 8; i++) total += __expf(x[i] - highest);
    }
    total = block_sum(total);
    const float factor = total == 0 ? 0 : 1 / total;
    EACH_EIGHT(column, row, row.columns) {
        load_scores(x, s, row, column, scores.scale, mask, strides.key);
        for (int i = 0; i < 8; i++) x[i] = to_float(to_scalar(__expf(x[i] - highest) * factor));
        store_eight(x, p, row, column);
        if (!w) continue;
        if (column < row.seen) drop(x, row, column, dropout);
        store_eight(x, w, row, column);
    }
}

// ds takes the place of dw, and w is computed again from p, as dv = w^T g; null where that is not wanted.
extern "C" __global__ void attention_weights_backward(const scalar *p, Scores scores, Dropout dropout,
                                                      const unsigned long long *earlier, scalar *dw, scalar *w) {
    const Row row = row_of_block(scores);
    dropout = later(dropout, earlier);
    float weight[8], change[8], sum = 0;
    auto load_change = [&](int column) {  // and the weights
        for (int i = 0; i < 8; i++) weight[i] = change[i] = 0;
        if (column >= row.seen) return;
        load_eight(weight, p, row, column);
        load_eight(change, dw, row, column);
        if (dropout.dropped) drop(change, row, column, dropout);
        for (int i = 0; i < 8; i++) if (weight[i] == 0) change[i] = 0;  // even if float16 cannot hold dw
    };
    EACH_EIGHT(column, row, row.seen) {
        load_change(column);
        for (int i = 0; i < 8; i++) sum += change[i] * weight[i];
    }
    sum = block_sum(sum);
    EACH_EIGHT(column, row, row.columns) {
        load_change(column);
        for (int i = 0; i < 8; i++) change[i] = weight[i] * (change[i] - sum) * scores.scale;
        store_eight(change, dw, row, column);
        if (!w) continue;
        if (column < row.seen) drop(weight, row, column, dropout);
        store_eight(weight, w, row, column);
    }
}
