// Layer normalization of the rows of x (N, C). The reference is LayerNorm in minigrad/ops/normalization.py:
//
//     mu = mean(x)    r = 1/sqrt(mean((x - mu)^2) + eps)    x_hat = (x - mu) r    y = gamma x_hat + beta
//     dx = r (g_hat - mean(g_hat) - x_hat mean(g_hat x_hat))    with g_hat = g gamma
//     dgamma = sum over rows of g x_hat    dbeta = sum over rows of g
//
// A row lies in the registers of the threads that share it, so memory is read once and written once. Those are a warp, or
// a whole block where a row is too long for a warp: the backward keeps four arrays of its length. A large mean has an error
// from rounding, 1e-3 for a mean of 1e4. So mu has two numbers a row (2, N): the mean, and the mean of what is left after
// subtracting it. Defined before:
//   CHANNELS       C
//   WIDTH          elements in an access; CHANNELS is a multiple of it
//   ROW_THREADS    threads that share a row: 32, or all of a block
//
// Thread t of a row has the columns t WIDTH, t WIDTH + 1, … of every stretch of ROW_THREADS WIDTH columns. All loops over
// these are unrolled: an array whose indices are not known in advance would lie in memory.

#define STRETCHES ((CHANNELS + ROW_THREADS * WIDTH - 1) / (ROW_THREADS * WIDTH))
#define EACH_STRETCH(s, column)                                                   \
    _Pragma("unroll") for (int s = 0, column = threadIdx.x % ROW_THREADS * WIDTH; \
                           s < STRETCHES; s++, column += ROW_THREADS * WIDTH) if (column < CHANNELS)
#define FOR_EACH_ELEMENT(i) _Pragma("unroll") for (int i = 0; i < WIDTH; i++)

typedef Pack<scalar, WIDTH> Elements;

__device__ __forceinline__ int first_row() { return blockIdx.x * (blockDim.x / ROW_THREADS) + threadIdx.x / ROW_THREADS; }
__device__ __forceinline__ int row_step() { return gridDim.x * (blockDim.x / ROW_THREADS); }
__device__ __forceinline__ float row_sum(float x) { return ROW_THREADS == 32 ? warp_sum(x) : block_sum(x); }

extern "C" __global__ void layer_norm_forward(const scalar *x, const scalar *gamma, const scalar *beta, float eps,
                                              int rows, scalar *y, float *mu, float *r) {
    for (int row = first_row(); row < rows; row += row_step()) {
        const long long start = (long long)row * CHANNELS;
        float own[STRETCHES][WIDTH];
        float total = 0;
        EACH_STRETCH(s, column) {
            const Elements loaded = load<WIDTH>(x + start + column);
            FOR_EACH_ELEMENT(i) {
                own[s][i] = to_float(loaded.values[i]);
                total += own[s][i];
            }
        }
        const float mean = row_sum(total) / CHANNELS;
        float left = 0;
        EACH_STRETCH(s, column) FOR_EACH_ELEMENT(i) {
            own[s][i] -= mean;
            left += own[s][i];
        }
        left = row_sum(left) / CHANNELS;
        float squares = 0;
        EACH_STRETCH(s, column) FOR_EACH_ELEMENT(i) {
            own[s][i] -= left;
            squares += own[s][i] * own[s][i];
        }
        const float scale = 1 / sqrtf(row_sum(squares) / CHANNELS + eps);
        EACH_STRETCH(s, column) {
            Elements result;
            FOR_EACH_ELEMENT(i) {
                float value = own[s][i] * scale;
                if (gamma) value *= to_float(gamma[column + i]);
                if (beta) value += to_float(beta[column + i]);
                result.values[i] = to_scalar(value);
            }
            store<WIDTH>(y + start + column, result);
        }
        if (threadIdx.x % ROW_THREADS == 0) {
            mu[row] = mean;
            mu[rows + row] = left;
            r[row] = scale;
        }
    }
}

// dx, and for every block the sums over its rows of g x_hat and of g, (gridDim.x, C) each; sum_rows.cu adds these up.
extern "C" __global__ void layer_norm_backward(const scalar *g, const scalar *x, const scalar *gamma, const float *mu,
                                               const float *r, int rows, scalar *dx, float *dgamma, float *dbeta) {
    float own_dgamma[STRETCHES][WIDTH] = {}, own_dbeta[STRETCHES][WIDTH] = {};
    for (int row = first_row(); row < rows; row += row_step()) {
        const long long start = (long long)row * CHANNELS;
        const float mean = mu[row], left = mu[rows + row], scale = r[row];
        float g_hat[STRETCHES][WIDTH], x_hat[STRETCHES][WIDTH];
        float shift = 0, projection = 0;
        EACH_STRETCH(s, column) {
            const Elements upstream = load<WIDTH>(g + start + column), input = load<WIDTH>(x + start + column);
            FOR_EACH_ELEMENT(i) {
                const float value = to_float(upstream.values[i]);
                x_hat[s][i] = (to_float(input.values[i]) - mean - left) * scale;
                g_hat[s][i] = gamma ? value * to_float(gamma[column + i]) : value;
                own_dgamma[s][i] += value * x_hat[s][i];
                own_dbeta[s][i] += value;
                shift += g_hat[s][i];
                projection += g_hat[s][i] * x_hat[s][i];
            }
        }
        shift = row_sum(shift) / CHANNELS;
        projection = row_sum(projection) / CHANNELS;
        EACH_STRETCH(s, column) {
            Elements result;
            FOR_EACH_ELEMENT(i) {
                result.values[i] = to_scalar(scale * (g_hat[s][i] - shift - x_hat[s][i] * projection));
            }
            store<WIDTH>(dx + start + column, result);
        }
    }

    __shared__ float sums[2][CHANNELS];  // the rows of the block add what they have, one after the other
    for (int row = 0; row < blockDim.x / ROW_THREADS; row++) {
        if (threadIdx.x / ROW_THREADS == row) {
            EACH_STRETCH(s, column) FOR_EACH_ELEMENT(i) {
                sums[0][column + i] = own_dgamma[s][i] + (row ? sums[0][column + i] : 0);
                sums[1][column + i] = own_dbeta[s][i] + (row ? sums[1][column + i] : 0);
            }
        }
        __syncthreads();
    }
    for (int column = threadIdx.x; column < CHANNELS; column += blockDim.x) {
        dgamma[(long long)blockIdx.x * CHANNELS + column] = sums[0][column];
        dbeta[(long long)blockIdx.x * CHANNELS + column] = sums[1][column];
    }
}
