// Softmax of the rows of x (N, C). The reference is Softmax in minigrad/ops/softmax.py:
//
//     y_j = e^(x_j - m) / sum over k of e^(x_k - m), m = max(x)        dx_j = y_j (g_j - sum over k of g_k y_k)
//
// A row of -inf throughout gives zeros. One block has one row; the row is read twice, the second time from the cache.

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
