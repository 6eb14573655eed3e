// The gradient of an embedding table W (V, C). The reference is Embedding in minigrad/ops/embedding.py:
//
//     dW[v] = sum of g[n] over the places n with ids[n] = v
//
// One warp has one row of the table. The warps of a block look through the ids together, 32 ids a warp at a time: each
// lane compares one, and for every lane that found v the whole warp adds that row of g to what it holds in registers.
// The order of additions is the order of the places, and nothing is sorted and nothing is atomic.
// A small table gives few warps; then the places are cut into strips, whose sums sum_rows.cu adds up. Defined before:
//   CHANNELS    C
//   WIDTH       elements in an access; CHANNELS is a multiple of it

#define STRETCHES ((CHANNELS + 32 * WIDTH - 1) / (32 * WIDTH))
#define BATCH 1024  // ids that lie in shared memory at a time

// strips[s, v] = sum of g[n] over the places n of strip s with ids[n] = v. Blocks: (V / warps in a block, strips).
extern "C" __global__ void embedding_backward(const scalar *g, const int *ids, int places, int vocabulary,
                                              float *strips) {
    __shared__ int seen[BATCH];
    const int lane = threadIdx.x % 32, v = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const int strip = (places + gridDim.y - 1) / gridDim.y;
    const int first = blockIdx.y * strip, last = min(first + strip, places);
    float own[STRETCHES][WIDTH] = {};
    for (int from = first; from < last; from += BATCH) {
        const int size = min(BATCH, last - from);
        for (int i = threadIdx.x; i < BATCH; i += blockDim.x) seen[i] = i < size ? ids[from + i] : -1;
        __syncthreads();
        for (int i = 0; i < size; i += 32) {
            unsigned found = __ballot_sync(0xFFFFFFFFu, seen[i + lane] == v);
            for (; found; found &= found - 1) {
                const scalar *row = g + (long long)(from + i + __ffs(found) - 1) * CHANNELS;
                for (int s = 0, column = lane * WIDTH; s < STRETCHES; s++, column += 32 * WIDTH) {
                    if (column >= CHANNELS) continue;
                    const Pack<scalar, WIDTH> loaded = load<WIDTH>(row + column);
                    for (int e = 0; e < WIDTH; e++) own[s][e] += to_float(loaded.values[e]);
                }
            }
        }
        __syncthreads();
    }
    if (v >= vocabulary) return;
    float *target = strips + ((long long)blockIdx.y * vocabulary + v) * CHANNELS;
    for (int s = 0, column = lane * WIDTH; s < STRETCHES; s++, column += 32 * WIDTH) {
        for (int e = 0; e < WIDTH; e++) {
            if (column < CHANNELS) target[column + e] = own[s][e];
        }
    }
}
