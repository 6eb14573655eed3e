// Cross-entropy of the rows of logits x (N, V) with integer targets. The reference is CrossEntropy in
// minigrad/ops/loss.py:
//
//     loss_n = lse_n - x_n,target(n)    with lse_n = ln(sum over j of e^(x_nj))
//     dx_nj = (e^(x_nj - lse_n) - 1[j = target(n)]) g_n                            and 0 in rows that are ignored
//
// One block has one row. The sum is kept relative to the highest logit met so far, and scaled down when a higher one
// turns up, so that one reading is enough:
//     sum over j of e^(x_j - m) = (sum over j before of e^(x_j - m')) e^(m' - m) + e^(x_last - m)
// Defined before:
//   WIDTH    elements in an access; V is a multiple of it

typedef Pack<scalar, WIDTH> Elements;

// losses (N,) and lse (N,), both float32; a row of -inf throughout has lse 0 and a gradient of 0 from its first term.
// The loss is NaN for a target that is no column: the host does not look at targets, which would make it wait.
extern "C" __global__ void cross_entropy_forward(const scalar *x, const int *targets, int ignored, int vocabulary,
                                                 float *losses, float *lse) {
    const scalar *row = x + (long long)blockIdx.x * vocabulary;
    float highest = -INFINITY, sum = 0;
    for (int j = threadIdx.x * WIDTH; j < vocabulary; j += blockDim.x * WIDTH) {
        const Elements own = load<WIDTH>(row + j);
        float here = highest;
        for (int i = 0; i < WIDTH; i++) here = fmaxf(here, to_float(own.values[i]));
        if (here > highest) sum *= __expf(highest - here);
        highest = here;
        for (int i = 0; i < WIDTH; i++) {
            const float value = to_float(own.values[i]);
            if (value != -INFINITY) sum += __expf(value - highest);  // e^(-inf) = 0 also where nothing is higher
        }
    }
    const float highest_of_all = block_max(highest);
    // Where nothing is higher than -inf the sum is 0, or NaN: the maximum does not show a NaN.
    sum = block_sum(highest == -INFINITY ? sum : sum * __expf(highest - highest_of_all));
    if (threadIdx.x == 0) {
        const int target = targets[blockIdx.x];
        const float result = sum == 0 ? 0 : highest_of_all + logf(sum);
        lse[blockIdx.x] = result;
        const bool exists = target >= 0 && target < vocabulary;
        const float wanted = exists ? to_float(row[target]) : __uint_as_float(0x7FC00000u);
        losses[blockIdx.x] = target == ignored ? 0 : result - wanted;
    }
}

// total[0] = the sum of the losses, or their mean over the targets that count; total[1] = how many count. One block.
extern "C" __global__ void add_losses(const float *losses, const int *targets, int ignored, int rows, int mean,
                                      float *total) {
    float sum = 0, count = 0;
    for (int n = threadIdx.x; n < rows; n += blockDim.x) {
        sum += losses[n];
        count += targets[n] != ignored;
    }
    sum = block_sum(sum);
    count = block_sum(count);
    if (threadIdx.x == 0) {
        total[0] = mean ? sum / count : sum;
        total[1] = count;
    }
}

// dx, which may be x itself. g has one value a row, or one for all rows; `total` is null unless the loss was a mean.
extern "C" __global__ void cross_entropy_backward(const float *g, int g_rows, const float *total, const scalar *x,
                                                  const int *targets, const float *lse, int ignored, int vocabulary,
                                                  scalar *dx) {
    const long long start = (long long)blockIdx.x * vocabulary;
    const int target = targets[blockIdx.x];
    float g_row = g[g_rows == 1 ? 0 : blockIdx.x];
    if (total) g_row /= fmaxf(total[1], 1);
    if (target == ignored) g_row = 0;
    const float own_lse = lse[blockIdx.x];
    for (int j = threadIdx.x * WIDTH; j < vocabulary; j += blockDim.x * WIDTH) {
        Elements own = load<WIDTH>(x + start + j);
        for (int i = 0; i < WIDTH; i++) {
            const float p = __expf(to_float(own.values[i]) - own_lse);
            own.values[i] = to_scalar(g_row == 0 ? 0 : (p - (j + i == target)) * g_row);
        }
        store<WIDTH>(dx + start + j, own);
    }
}
