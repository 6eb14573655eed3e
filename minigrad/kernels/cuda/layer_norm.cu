// Layer normalisation of the rows of x (N, C). The reference is LayerNorm in minigrad/ops/normalization.py:
//
//     mu = mean(x)    r = 1/sqrt(mean((x - mu)^2) + eps)    x_hat = (x - mu) r    y = gamma x_hat + beta
//     dx = r (g_hat - mean(g_hat) - x_hat mean(g_hat x_hat))    with g_hat = g gamma
//     dgamma = sum over rows of g x_hat    dbeta = sum over rows of g
//
// One warp has one row at a time and keeps it in registers, so memory is read once and written once. Defined before:
//   CHANNELS    C
//   WIDTH       elements in an access; CHANNELS is a multiple of it
//
// What is unrolled lies in registers, however long a row is. The backward has four arrays of a row: too many for that.
// Lane l has the columns l WIDTH, l WIDTH + 1, … of every stretch of 32 WIDTH columns.

#define STRETCHES ((CHANNELS + 32 * WIDTH - 1) / (32 * WIDTH))
#define EACH_STRETCH(s, column) \
    for (int s = 0, column = threadIdx.x % 32 * WIDTH; s < STRETCHES; s++, column += 32 * WIDTH) if (column < CHANNELS)
#define EACH_STRETCH_UNROLLED(s, column) _Pragma("unroll") EACH_STRETCH(s, column)
#define FOR_EACH_ELEMENT(i) _Pragma("unroll") for (int i = 0; i < WIDTH; i++)

typedef Pack<scalar, WIDTH> Elements;

__device__ __forceinline__ int first_row() { return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }
__device__ __forceinline__ int row_step() { return gridDim.x * (blockDim.x / 32); }

extern "C" __global__ void layer_norm_forward(const scalar *x, const scalar *gamma, const scalar *beta, float eps,
                                              int rows, scalar *y, float *mu, float *r) {
    for (int row = first_row(); row < rows; row += row_step()) {
        const long long start = (long long)row * CHANNELS;
        float own[STRETCHES][WIDTH];
        float total = 0;
        EACH_STRETCH_UNROLLED(s, column) {
            const Elements loaded = load<WIDTH>(x + start + column);
            FOR_EACH_ELEMENT(i) {
                own[s][i] = to_float(loaded.values[i]);
                total += own[s][i];
            }
        }
        const float mean = warp_sum(total) / CHANNELS;
        float squares = 0;
        EACH_STRETCH_UNROLLED(s, column) FOR_EACH_ELEMENT(i) {
            own[s][i] -= mean;
            squares += own[s][i] * own[s][i];
        }
        const float scale = 1 / sqrtf(warp_sum(squares) / CHANNELS + eps);
        EACH_STRETCH_UNROLLED(s, column) {
            Elements result;
            FOR_EACH_ELEMENT(i) {
                float value = own[s][i] * scale;
                if (gamma) value *= to_float(gamma[column + i]);
                if (beta) value += to_float(beta[column + i]);
                result.values[i] = to_scalar(value);
            }
            store<WIDTH>(y + start + column, result);
        }
        if (threadIdx.x % 32 == 0) {
            mu[row] = mean;
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
        const float mean = mu[row], scale = r[row];
        float g_hat[STRETCHES][WIDTH], x_hat[STRETCHES][WIDTH];
        float shift = 0, projection = 0;
        EACH_STRETCH(s, column) {
            const Elements upstream = load<WIDTH>(g + start + column), input = load<WIDTH>(x + start + column);
            FOR_EACH_ELEMENT(i) {
                const float value = to_float(upstream.values[i]);
                x_hat[s][i] = (to_float(input.values[i]) - mean) * scale;
                g_hat[s][i] = gamma ? value * to_float(gamma[column + i]) : value;
                own_dgamma[s][i] += value * x_hat[s][i];
                own_dbeta[s][i] += value;
                shift += g_hat[s][i];
                projection += g_hat[s][i] * x_hat[s][i];
            }
        }
        shift = warp_sum(shift) / CHANNELS;
        projection = warp_sum(projection) / CHANNELS;
        EACH_STRETCH(s, column) {
            Elements result;
            FOR_EACH_ELEMENT(i) {
                result.values[i] = to_scalar(scale * (g_hat[s][i] - shift - x_hat[s][i] * projection));
            }
            store<WIDTH>(dx + start + column, result);
        }
    }

    __shared__ float sums[2][CHANNELS];  // the warps add what they have, one after the other
    for (int warp = 0; warp < blockDim.x / 32; warp++) {
        if (threadIdx.x / 32 == warp) {
            EACH_STRETCH(s, column) FOR_EACH_ELEMENT(i) {
                sums[0][column + i] = own_dgamma[s][i] + (warp ? sums[0][column + i] : 0);
                sums[1][column + i] = own_dbeta[s][i] + (warp ? sums[1][column + i] : 0);
            }
        }
        __syncthreads();
    }
    for (int column = threadIdx.x; column < CHANNELS; column += blockDim.x) {
        dgamma[(long long)blockIdx.x * CHANNELS + column] = sums[0][column];
        dbeta[(long long)blockIdx.x * CHANNELS + column] = sums[1][column];
    }
}
