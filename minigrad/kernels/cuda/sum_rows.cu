// Sums over the rows of a matrix: the gradient of a bias, which is added to every row, is sum over rows of g.
//
// Reading a matrix at the memory's speed takes many blocks, and each can add up only some of the rows, a strip. So there
// are two steps and no atomics: the order of additions is always the same. Defined before:
//   WIDTH    elements in an access; `columns` is a multiple of it

#define WARPS 8

// strips[s, c] = sum of x[row, c] over the rows of strip s. Blocks: (columns / (32 WIDTH), strips), of 8 warps.
extern "C" __global__ void sum_strips(const scalar *x, int rows, int columns, float *strips) {
    const int warp = threadIdx.x / 32, column = (blockIdx.x * 32 + threadIdx.x % 32) * WIDTH;
    float own[WIDTH] = {};
    if (column < columns) {
        for (int row = blockIdx.y * WARPS + warp; row < rows; row += gridDim.y * WARPS) {
            const Pack<scalar, WIDTH> loaded = load<WIDTH>(x + (long long)row * columns + column);
            for (int i = 0; i < WIDTH; i++) own[i] += to_float(loaded.values[i]);
        }
    }
    __shared__ float sums[WARPS][32 * WIDTH];
    for (int i = 0; i < WIDTH; i++) sums[warp][threadIdx.x % 32 * WIDTH + i] = own[i];
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * WIDTH; i += 32 * WARPS) {
        const int target = blockIdx.x * 32 * WIDTH + i;
        if (target >= columns) continue;
        float total = 0;
        for (int other = 0; other < WARPS; other++) total += sums[other][i];
        strips[(long long)blockIdx.y * columns + target] = total;
    }
}

// out[c] = sum over the strips of strips[s, c]. `ways` warps of a block, a power of two, share 32 columns: each adds up
// every ways-th strip, and the first of them adds up the sums. Blocks: columns / (threads in a block / ways).
extern "C" __global__ void add_strips(const float *strips, int number, int columns, int ways, scalar *out) {
    __shared__ float sums[32][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, share = warp % ways;
    const int column = (blockIdx.x * (blockDim.x / 32 / ways) + warp / ways) * 32 + lane;
    float total = 0;
    if (column < columns) {
        for (int s = share; s < number; s += ways) total += strips[(long long)s * columns + column];
    }
    sums[warp][lane] = total;
    __syncthreads();
    if (share || column >= columns) return;
    for (int other = 1; other < ways; other++) total += sums[warp + other][lane];
    out[column] = to_scalar(total);
}
