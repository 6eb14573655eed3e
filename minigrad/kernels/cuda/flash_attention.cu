// Attention that never writes the scores to memory (Dao et al., 2022; Dao, 2023). The reference is Attention in
// minigrad/ops/attention.py, for every batch and head:
//
//     s = q k^T / sqrt(D)    p = softmax(s)    y = dropout(p) v          q, y (T, D)    k, v (U, D)    s, p (T, U)
//
// Forward: the online softmax. A block of threads has ROWS queries and meets the keys a tile of COLUMNS at a time. Of
// the keys met so far it keeps, for every query, the largest score m, the sum l of exp(s - m), and o, the sum of
// exp(s - m) v. A tile with scores s and values v changes them to
//
//     m' = max(m, max(s))    l' = exp(m - m') l + sum exp(s - m')    o' = exp(m - m') o + sum exp(s - m') v
//
// This is right because exp(m - m') exp(s - m) = exp(s - m'): if l and o are what they say for the keys before, l' and
// o' are for these and the tile's; and before the first key, with m = -inf, both are 0. At the end y = o / l, as
// p = exp(s - m) / l. What is kept for the backward is y and lse = m + log(l), so that p = exp(s - lse).
// A query that sees no key has l = 0: y = 0, and lse = +inf, which makes every p 0.
//
// Backward: p is computed again. With g = dL/dy, d for dL/d, and delta = sum over D of g y = sum over keys of dp p,
//
//     dv = dropout(p)^T g      dp = dropout(g v^T)      ds = p (dp - delta)      dq = ds k / sqrt(D)
//                                                                                dk = ds^T q / sqrt(D)
//
// dk and dv are sums over queries, dq over keys. So that each has one owner and is added up in one order, without
// atomics, there are two kernels: one where a block has ROWS queries and meets all keys, and one where it has ROWS keys
// and meets all queries. Both compute s and dp: 7 products in place of 5, and results that are the same in every run.
//
//           keys (U) ->
//         +----+----+----+----+        causal: query i sees the keys up to i + U - T. Tiles above the diagonal are left
//     q   | ## | \  |    |    |        out, those that it cuts (\) are masked, and the others (##) need no mask.
//    (T)  +----+----+----+----+        The forward and dq walk along the rows of this picture, a block of threads each,
//     |   | ## | ## | \  |    |        and dk and dv down its columns, from the first tile that is not empty.
//     v   +----+----+----+----+
//         | ## | ## | ## | \  |
//         +----+----+----+----+
//
// Dropout multiplies what it keeps by a factor, 1 / (1 - p). With r = 1 / factor and m = 1 for what is kept, else 0,
// y = factor (m p) v, dv = factor (m p)^T g and ds = factor p (m (g v^T) - r delta): the factor waits until the end,
// and r delta is what is stored as delta.
//
// All products are of two forms. `a` are the rows of the block and w what was computed of them; b is the tile it meets:
//
//     multiply_by_rows       c += a b^T    s, dp; for dk and dv it is s^T = k q^T and dp^T = v g^T
//     multiply_by_columns    c += w b      o += p v;   dq += ds k;   dk += ds^T q, dv += p^T g
//
// A warp has STRIPS strips of 16 rows of the block. Lane 4 g + t has of every strip the rows g and g + 8, and of them
// in every 8 columns the columns 2t and 2t + 1: c[strip][n][0..1] are those of row g, c[strip][n][2..3] those of row
// g + 8. The maximum of a row, or its sum, is that over the 4 lanes of one g (a quad).
//
// Shared memory: rows are HEAD + 8 elements long. The 16 bytes between them make the length an odd number of 16-byte
// units, so that the 8 rows that ldmatrix reads at once lie in 8 different groups of 4 banks: no two in one bank.
//
// Exponentials are powers of two, since the card computes these: exp(s) = 2^(s log2(e)). lse is kept in base 2, too.
//
// Defined before:
//   HEAD                                    D, a multiple of 16 up to 128
//   CAUSAL, DROPOUT                         0 or 1
//   FORWARD_STRIPS, FORWARD_COLUMNS         the tiles of the forward; COLUMNS are a multiple of 16
//   QUERY_STRIPS, QUERY_COLUMNS             those of the kernel for dq
//   KEY_STRIPS, KEY_COLUMNS                 those of the kernel for dk and dv

#include "dropout.cuh"
#include "tensor_core.cuh"

#define WARPS 4
#define THREADS (32 * WARPS)
#define EIGHTS (HEAD / 8)
#define COPIERS (HEAD <= 64 ? 8 : 16)  // threads that copy a row, 16 bytes each
#define SCALE (1.0f / sqrtf(HEAD))
#define SCALE_IN_BASE_2 (SCALE * 1.44269504f)
#define EACH(i, count) _Pragma("unroll") for (int i = 0; i < (count); i++)

typedef scalar Row[HEAD + 8];

template <int STRIPS, int N>
using Block = float[STRIPS][N][4];  // this lane's part of the (16 STRIPS, 8 N) that its warp has

struct Size {
    int heads, queries, keys;  // heads: of one batch; 0 <= head < batches * heads below
};

struct Strides {  // in elements; neighbors in a row are neighbors in memory
    int batch, head, row;
};

__device__ __forceinline__ int divide_up(int a, int b) { return (a + b - 1) / b; }
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
    return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

// Where a head of an array begins.
template <class T>
__device__ __forceinline__ T *at_head(T *array, Strides strides, int head, Size size) {
    return array + (long long)(head / size.heads) * strides.batch + (long long)(head % size.heads) * strides.head;
}

// How many keys a query sees.
__device__ __forceinline__ int keys_seen(int query, Size size) {
    return CAUSAL ? max(0, min(size.keys, query + 1 + size.keys - size.queries)) : size.keys;
}

// Start to copy COUNT rows of a head, from `first` on, to shared memory; zeros for the rows that it does not have.
template <int COUNT>
__device__ __forceinline__ void start_rows(Row *tile, const scalar *head, int stride, int first, int rows) {
    constexpr int AT_ONCE = THREADS / COPIERS;
    const int column = threadIdx.x % COPIERS * 8;
    if (column >= HEAD) return;
    EACH(step, COUNT / AT_ONCE) {
        const int row = threadIdx.x / COPIERS + step * AT_ONCE;
        start_copy<16>(&tile[row][column], head + (long long)(first + row) * stride + column, first + row < rows);
    }
}

// Write a block to the rows of a head, by way of shared memory that only this warp uses: 16 bytes a lane.
template <int STRIPS>
__device__ __forceinline__ void store_rows(const Block<STRIPS, EIGHTS> &c, Row *own, scalar *head, int stride,
                                           int first, int rows) {
    __syncwarp();
    EACH(strip, STRIPS) EACH(n, EIGHTS) EACH(half, 2) {
        unsigned *pair = (unsigned *)&own[16 * strip + 8 * half + lane() / 4][8 * n + lane() % 4 * 2];
        *pair = pack(c[strip][n][2 * half], c[strip][n][2 * half + 1]);
    }
    __syncwarp();
    constexpr int AT_ONCE = 32 / COPIERS;
    const int column = lane() % COPIERS * 8;
    EACH(step, 16 * STRIPS / AT_ONCE) {
        const int row = lane() / COPIERS + step * AT_ONCE;
        if (column < HEAD && first + row < rows) {
            store<8>(head + (long long)(first + row) * stride + column, load<8>(&own[row][column]));
        }
    }
}

// c += a b^T: a are the rows of this warp, b those of the tile that the block meets, (8 N, HEAD).
template <int STRIPS, int N>
__device__ __forceinline__ void multiply_by_rows(Block<STRIPS, N> &c, const Row *a, const Row *b) {
    EACH(k, HEAD / 16) {
        unsigned left[STRIPS][4];
        EACH(strip, STRIPS) load_matrices(left[strip], &a[16 * strip + lane() % 16][16 * k + lane() / 16 * 8]);
        EACH(pair, N / 2) {
            unsigned right[4];
            load_matrices(right, &b[16 * pair + lane() / 16 * 8 + lane() % 8][16 * k + lane() / 8 % 2 * 8]);
            EACH(strip, STRIPS) {
                multiply(c[strip][2 * pair], left[strip], right[0], right[1]);
                multiply(c[strip][2 * pair + 1], left[strip], right[2], right[3]);
            }
        }
    }
}

// c += w b: w is what this warp has computed, (rows, 8 N), b the tile that the block meets, (8 N, HEAD).
template <int STRIPS, int N>
__device__ __forceinline__ void multiply_by_columns(Block<STRIPS, EIGHTS> &c, const Block<STRIPS, N> &w, const Row *b) {
    EACH(k, N / 2) {
        unsigned left[STRIPS][4];
        EACH(strip, STRIPS) as_left(left[strip], w[strip][2 * k], w[strip][2 * k + 1]);
        EACH(pair, HEAD / 16) {
            unsigned right[4];
            load_transposed_matrices(right, &b[16 * k + lane() % 16][16 * pair + lane() / 16 * 8]);
            EACH(strip, STRIPS) {
                multiply(c[strip][2 * pair], left[strip], right[0], right[1]);
                multiply(c[strip][2 * pair + 1], left[strip], right[2], right[3]);
            }
        }
    }
}

// Scores of keys that a query does not see become -inf. Rows are queries and columns keys.
template <int STRIPS, int N>
__device__ __forceinline__ void hide_keys(Block<STRIPS, N> &s, int first_query, int first_key, Size size) {
    if (first_key + 8 * N <= keys_seen(first_query, size)) return;  // the first query sees all, so the others do
    EACH(strip, STRIPS) EACH(half, 2) {
        const int query = first_query + 16 * strip + 8 * half + lane() / 4;
        const int seen = keys_seen(query, size) - first_key - lane() % 4 * 2;
        EACH(n, N) EACH(i, 2) if (8 * n + i >= seen) s[strip][n][2 * half + i] = -INFINITY;
    }
}

// The same where rows are keys and columns queries.
template <int STRIPS, int N>
__device__ __forceinline__ void hide_queries(Block<STRIPS, N> &s, int first_key, int first_query, Size size) {
    const int blind = first_key + size.queries - size.keys - first_query;  // of these queries do not see the first key
    if (blind + 16 * STRIPS <= 1) return;
    EACH(strip, STRIPS) EACH(half, 2) EACH(n, N) EACH(i, 2) {
        const int row = 16 * strip + 8 * half + lane() / 4, column = 8 * n + lane() % 4 * 2 + i;
        if (column < blind + row) s[strip][n][2 * half + i] = -INFINITY;
    }
}

// Dropout. The scores are cut into 16 x 16 squares, and in each a lane needs bits for two rows and four columns. One
// call of philox gives 16 bits for each of these eight: bits[2 (row / 8) + column / 8], lower half for even columns.
// It is the call of queries g and g + 8, and of keys 2t, 2t + 1, 2t + 8 and 2t + 9; its place is the number of these
// queries among those of all heads, and that of these keys.
__device__ __forceinline__ uint4 square_bits(int head, int query, int key, Size size, Dropout dropout) {
    const unsigned rows = divide_up(size.queries, 16) * 8, row = query / 16 * 8 + query % 8;
    return random_bits(dropout, head * rows + row, key / 16 * 4 + key % 8 / 2);
}

__device__ __forceinline__ uint4 query_bits(int head, int query, int key, Size size, Dropout dropout) {
    return square_bits(head, query + lane() / 4, key + lane() % 4 * 2, size, dropout);
}

// Where rows are keys, a lane needs keys g and g + 8 and queries 2t, 2t + 1, 2t + 8, 2t + 9: one half of the words of
// two calls. The lane whose g is its neighbor, 4 lanes away, needs the other halves: each makes one call.
__device__ __forceinline__ uint4 key_bits(int head, int query, int key, Size size, Dropout dropout) {
    const int g = lane() / 4, odd = g % 2;
    const uint4 own = square_bits(head, query + lane() % 4 * 2 + odd, key + g, size, dropout);
    const unsigned words[4] = {own.x, own.y, own.z, own.w};
    unsigned bits[4];
    EACH(i, 4) {
        const unsigned other = __shfl_xor_sync(0xFFFFFFFFu, words[i], 4);
        bits[i] = odd ? __byte_perm(other, words[i], 0x7632) : __byte_perm(words[i], other, 0x5410);
    }
    return uint4{bits[0], bits[2], bits[1], bits[3]};  // rows and columns have changed places
}

// Is element c[n][i] of a square, n = 0 or 1, kept?
__device__ __forceinline__ bool kept(uint4 bits, int n, int i, Dropout dropout) {
    const unsigned word = i < 2 ? (n == 0 ? bits.x : bits.y) : (n == 0 ? bits.z : bits.w);
    return (i % 2 ? word >> 16 : word & 0xFFFFu) >= (unsigned)dropout.dropped;
}

template <int STRIPS, int N>
__device__ __forceinline__ void drop(Block<STRIPS, N> &p, int head, int first_query, int first_key, Size size,
                                     Dropout dropout) {
    EACH(strip, STRIPS) EACH(pair, N / 2) {
        const uint4 bits = query_bits(head, first_query + 16 * strip, first_key + 16 * pair, size, dropout);
        EACH(n, 2) EACH(i, 4) if (!kept(bits, n, i, dropout)) p[strip][2 * pair + n][i] = 0;
    }
}

// The online softmax's step: s becomes exp(s - m').
template <int STRIPS, int N>
__device__ __forceinline__ void softmax_step(Block<STRIPS, N> &s, float (&m)[STRIPS][2], float (&l)[STRIPS][2],
                                             Block<STRIPS, EIGHTS> &o) {
    EACH(strip, STRIPS) EACH(half, 2) {
        float largest = m[strip][half];
        EACH(n, N) EACH(i, 2) largest = fmaxf(largest, s[strip][n][2 * half + i]);
        largest = quad_max(largest);
        const float base = largest == -INFINITY ? 0 : largest * SCALE_IN_BASE_2;  // no -inf - -inf
        const float shrink = power_of_two(m[strip][half] * SCALE_IN_BASE_2 - base);
        m[strip][half] = largest;
        l[strip][half] *= shrink;
        EACH(n, EIGHTS) EACH(i, 2) o[strip][n][2 * half + i] *= shrink;
        EACH(n, N) EACH(i, 2) {
            float &score = s[strip][n][2 * half + i];
            score = power_of_two(score * SCALE_IN_BASE_2 - base);
            l[strip][half] += score;  // of this lane's columns; the quad adds up at the end
        }
    }
}

// y and lse. Keys and values take turns: while the scores are computed the values are on their way, and while o is,
// the keys of the next tile.
extern "C" __global__ __launch_bounds__(THREADS) void attention_forward(
    const scalar *q, Strides q_strides, const scalar *k, Strides k_strides, const scalar *v, Strides v_strides,
    scalar *y, Strides y_strides, float *lse, Size size, Dropout dropout, const unsigned long long *earlier) {
    constexpr int STRIPS = FORWARD_STRIPS, COLUMNS = FORWARD_COLUMNS, ROWS = 16 * STRIPS * WARPS;
    DYNAMIC_SHARED(Row, q_tile);
    Row *k_tile = q_tile + ROWS, *v_tile = k_tile + COLUMNS;
    const int tiles = divide_up(size.queries, ROWS);
    const int head = blockIdx.x / tiles, first = (tiles - 1 - blockIdx.x % tiles) * ROWS;  // the longest rows first
    const int own = threadIdx.x / 32 * 16 * STRIPS;  // the first row of this warp
    const int key_tiles = divide_up(keys_seen(first + ROWS - 1, size), COLUMNS);
    if (DROPOUT) dropout = later(dropout, earlier);
    q = at_head(q, q_strides, head, size);
    k = at_head(k, k_strides, head, size);
    v = at_head(v, v_strides, head, size);

    float m[STRIPS][2], l[STRIPS][2] = {};
    EACH(strip, STRIPS) m[strip][0] = m[strip][1] = -INFINITY;
    Block<STRIPS, EIGHTS> o = {};
    start_rows<ROWS>(q_tile, q, q_strides.row, first, size.queries);
    start_rows<COLUMNS>(k_tile, k, k_strides.row, 0, size.keys);
    close_copies();
    for (int tile = 0; tile < key_tiles; tile++) {
        const int first_key = tile * COLUMNS;
        wait_for_copies<0>();
        __syncthreads();  // the keys have come, and all are done with the values before
        start_rows<COLUMNS>(v_tile, v, v_strides.row, first_key, size.keys);
        close_copies();
        Block<STRIPS, COLUMNS / 8> s = {};
        multiply_by_rows(s, q_tile + own, k_tile);
        hide_keys(s, first + own, first_key, size);
        wait_for_copies<0>();
        __syncthreads();  // the values have come, and all are done with the keys
        if (tile + 1 < key_tiles) start_rows<COLUMNS>(k_tile, k, k_strides.row, first_key + COLUMNS, size.keys);
        close_copies();
        softmax_step(s, m, l, o);
        if (DROPOUT) drop(s, head, first + own, first_key, size, dropout);
        multiply_by_columns(o, s, v_tile);
    }
    wait_for_copies<0>();  // where no key is seen, nothing has been waited for
    __syncthreads();

    EACH(strip, STRIPS) EACH(half, 2) {
        const float sum = quad_sum(l[strip][half]);
        const float factor = sum == 0 ? 0 : (DROPOUT ? dropout.factor : 1) / sum;
        EACH(n, EIGHTS) EACH(i, 2) o[strip][n][2 * half + i] *= factor;
        const int query = first + own + 16 * strip + 8 * half + lane() / 4;
        if (lane() % 4 == 0 && query < size.queries) {
            lse[(long long)head * size.queries + query] =
                sum == 0 ? INFINITY : m[strip][half] * SCALE_IN_BASE_2 + log2f(sum);
        }
    }
    store_rows(o, q_tile + own, at_head(y, y_strides, head, size), y_strides.row, first + own, size.queries);
}

// r times the sum over D of g y for every query; 8 lanes a query.
extern "C" __global__ __launch_bounds__(THREADS) void attention_delta(const scalar *g, Strides g_strides,
                                                                     const scalar *y, Strides y_strides, float *delta,
                                                                     Size size, int batches, Dropout dropout) {
    const long long i = (long long)blockIdx.x * (THREADS / 8) + threadIdx.x / 8;
    const bool there = i < (long long)batches * size.heads * size.queries;
    const int head = there ? i / size.queries : 0, query = there ? i % size.queries : 0;
    g = at_head(g, g_strides, head, size) + (long long)query * g_strides.row;
    y = at_head(y, y_strides, head, size) + (long long)query * y_strides.row;
    float sum = 0;
    for (int column = threadIdx.x % 8 * 8; column < HEAD; column += 64) {
        const Pack<scalar, 8> upstream = load<8>(g + column), value = load<8>(y + column);
        EACH(e, 8) sum += to_float(upstream.values[e]) * to_float(value.values[e]);
    }
    for (int distance = 4; distance; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
    const float kept_share = (65536 - dropout.dropped) / 65536.0f;
    if (there && threadIdx.x % 8 == 0) delta[i] = sum * kept_share;
}

// dq: the block has queries and meets keys. While it works on one tile of keys and values the next is on its way.
extern "C" __global__ __launch_bounds__(THREADS) void attention_backward_queries(
    const scalar *g, Strides g_strides, const scalar *q, Strides q_strides, const scalar *k, Strides k_strides,
    const scalar *v, Strides v_strides, const float *lse, const float *delta, scalar *dq, Strides dq_strides,
    Size size, Dropout dropout, const unsigned long long *earlier) {
    constexpr int STRIPS = QUERY_STRIPS, COLUMNS = QUERY_COLUMNS, ROWS = 16 * STRIPS * WARPS;
    DYNAMIC_SHARED(Row, q_tile);
    Row *g_tile = q_tile + ROWS, *k_tiles = g_tile + ROWS, *v_tiles = k_tiles + 2 * COLUMNS;
    const int tiles = divide_up(size.queries, ROWS);
    const int head = blockIdx.x / tiles, first = (tiles - 1 - blockIdx.x % tiles) * ROWS;
    const int own = threadIdx.x / 32 * 16 * STRIPS;
    const int key_tiles = divide_up(keys_seen(first + ROWS - 1, size), COLUMNS);
    if (DROPOUT) dropout = later(dropout, earlier);
    k = at_head(k, k_strides, head, size);
    v = at_head(v, v_strides, head, size);

    float own_lse[STRIPS][2], own_delta[STRIPS][2];
    EACH(strip, STRIPS) EACH(half, 2) {
        const int query = min(first + own + 16 * strip + 8 * half + lane() / 4, size.queries - 1);
        own_lse[strip][half] = lse[(long long)head * size.queries + query];
        own_delta[strip][half] = delta[(long long)head * size.queries + query];
    }
    Block<STRIPS, EIGHTS> sum = {};
    start_rows<ROWS>(q_tile, at_head(q, q_strides, head, size), q_strides.row, first, size.queries);
    start_rows<ROWS>(g_tile, at_head(g, g_strides, head, size), g_strides.row, first, size.queries);
    start_rows<COLUMNS>(k_tiles, k, k_strides.row, 0, size.keys);
    start_rows<COLUMNS>(v_tiles, v, v_strides.row, 0, size.keys);
    close_copies();
    for (int tile = 0; tile < key_tiles; tile++) {
        const int first_key = tile * COLUMNS, stage = tile % 2 * COLUMNS, next = COLUMNS - stage;
        wait_for_copies<0>();
        __syncthreads();  // this tile has come, and all are done with the one before
        if (tile + 1 < key_tiles) {
            start_rows<COLUMNS>(k_tiles + next, k, k_strides.row, first_key + COLUMNS, size.keys);
            start_rows<COLUMNS>(v_tiles + next, v, v_strides.row, first_key + COLUMNS, size.keys);
        }
        close_copies();
        Block<STRIPS, COLUMNS / 8> s = {}, dp = {};
        multiply_by_rows(s, q_tile + own, k_tiles + stage);
        multiply_by_rows(dp, g_tile + own, v_tiles + stage);
        hide_keys(s, first + own, first_key, size);
        EACH(strip, STRIPS) EACH(pair, COLUMNS / 16) {
            uint4 bits;
            if (DROPOUT) bits = query_bits(head, first + own + 16 * strip, first_key + 16 * pair, size, dropout);
            EACH(n, 2) EACH(i, 4) {
                float &score = s[strip][2 * pair + n][i], change = dp[strip][2 * pair + n][i];
                if (DROPOUT && !kept(bits, n, i, dropout)) change = 0;
                const float p = power_of_two(score * SCALE_IN_BASE_2 - own_lse[strip][i / 2]);
                score = p * (change - own_delta[strip][i / 2]);
            }
        }
        multiply_by_columns(sum, s, k_tiles + stage);
    }
    wait_for_copies<0>();  // where no key is seen, nothing has been waited for
    __syncthreads();
    EACH(strip, STRIPS) EACH(n, EIGHTS) EACH(i, 4) sum[strip][n][i] *= SCALE * (DROPOUT ? dropout.factor : 1);
    store_rows(sum, q_tile + own, at_head(dq, dq_strides, head, size), dq_strides.row, first + own, size.queries);
}

// dk and dv: the block has keys and meets queries.
extern "C" __global__ __launch_bounds__(THREADS) void attention_backward_keys(
    const scalar *g, Strides g_strides, const scalar *q, Strides q_strides, const scalar *k, Strides k_strides,
    const scalar *v, Strides v_strides, const float *lse, const float *delta, scalar *dk, Strides dk_strides,
    scalar *dv, Strides dv_strides, Size size, Dropout dropout, const unsigned long long *earlier) {
    constexpr int STRIPS = KEY_STRIPS, COLUMNS = KEY_COLUMNS, ROWS = 16 * STRIPS * WARPS;
    DYNAMIC_SHARED(Row, k_tile);
    Row *v_tile = k_tile + ROWS, *q_tiles = v_tile + ROWS, *g_tiles = q_tiles + 2 * COLUMNS;
    float *lse_tiles = (float *)(g_tiles + 2 * COLUMNS), *delta_tiles = lse_tiles + 2 * COLUMNS;
    const int tiles = divide_up(size.keys, ROWS);
    const int head = blockIdx.x / tiles, first = blockIdx.x % tiles * ROWS;
    const int own = threadIdx.x / 32 * 16 * STRIPS;
    const int unseen = CAUSAL ? max(0, first + size.queries - size.keys) : 0;  // queries that see none of these keys
    int first_query = unseen / COLUMNS * COLUMNS, stage = 0;
    if (DROPOUT) dropout = later(dropout, earlier);
    g = at_head(g, g_strides, head, size);
    q = at_head(q, q_strides, head, size);
    lse += (long long)head * size.queries;
    delta += (long long)head * size.queries;
    auto start_queries = [&](int first_query, int stage) {
        start_rows<COLUMNS>(q_tiles + stage, q, q_strides.row, first_query, size.queries);
        start_rows<COLUMNS>(g_tiles + stage, g, g_strides.row, first_query, size.queries);
        if (threadIdx.x < COLUMNS) {  // of queries that are not there q and g are 0, and so is what they add
            const int query = first_query + threadIdx.x;
            start_copy<4>(&lse_tiles[stage + threadIdx.x], lse + query, query < size.queries);
            start_copy<4>(&delta_tiles[stage + threadIdx.x], delta + query, query < size.queries);
        }
    };

    Block<STRIPS, EIGHTS> k_sum = {}, v_sum = {};
    start_rows<ROWS>(k_tile, at_head(k, k_strides, head, size), k_strides.row, first, size.keys);
    start_rows<ROWS>(v_tile, at_head(v, v_strides, head, size), v_strides.row, first, size.keys);
    start_queries(first_query, stage);
    close_copies();
    for (; first_query < size.queries; first_query += COLUMNS, stage = COLUMNS - stage) {
        wait_for_copies<0>();
        __syncthreads();
        if (first_query + COLUMNS < size.queries) start_queries(first_query + COLUMNS, COLUMNS - stage);
        close_copies();
        Block<STRIPS, COLUMNS / 8> s = {}, dp = {};
        multiply_by_rows(s, k_tile + own, q_tiles + stage);
        multiply_by_rows(dp, v_tile + own, g_tiles + stage);
        if (CAUSAL) hide_queries(s, first + own, first_query, size);
        EACH(strip, STRIPS) EACH(pair, COLUMNS / 16) {
            uint4 bits;
            if (DROPOUT) bits = key_bits(head, first_query + 16 * pair, first + own + 16 * strip, size, dropout);
            EACH(n, 2) EACH(i, 4) {
                float &score = s[strip][2 * pair + n][i], &change = dp[strip][2 * pair + n][i];
                const int query = stage + 16 * pair + 8 * n + lane() % 4 * 2 + i % 2;
                const float p = power_of_two(score * SCALE_IN_BASE_2 - lse_tiles[query]);
                const bool keeps = !DROPOUT || kept(bits, n, i, dropout);
                change = p * ((keeps ? change : 0) - delta_tiles[query]);
                score = keeps ? p : 0;
            }
        }
        multiply_by_columns(v_sum, s, g_tiles + stage);
        multiply_by_columns(k_sum, dp, q_tiles + stage);
    }
    EACH(strip, STRIPS) EACH(n, EIGHTS) EACH(i, 4) {
        k_sum[strip][n][i] *= SCALE * (DROPOUT ? dropout.factor : 1);
        if (DROPOUT) v_sum[strip][n][i] *= dropout.factor;
    }
    store_rows(k_sum, k_tile + own, at_head(dk, dk_strides, head, size), dk_strides.row, first + own, size.keys);
    store_rows(v_sum, v_tile + own, at_head(dv, dv_strides, head, size), dv_strides.row, first + own, size.keys);
}
