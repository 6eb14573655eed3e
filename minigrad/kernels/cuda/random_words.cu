// The random words of a draw. The reference is draw_words in minigrad/random/counter.py, which this equals bit for bit:
//
//     words[4 b], …, words[4 b + 3] = philox(b, number of the draw) under the seed
//
// One thread computes a block b of four words. `earlier` is as in dropout.cu.

#include "dropout.cuh"

extern "C" __global__ void random_words(Dropout draw, const unsigned long long *earlier, long long n, unsigned *words) {
    const unsigned long long block = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long start = (long long)block * 4;
    if (start >= n) return;
    const uint4 four = random_bits(later(draw, earlier), (unsigned)block, (unsigned)(block >> 32));
    const unsigned own[4] = {four.x, four.y, four.z, four.w};
    for (int i = 0; i < 4 && start + i < n; i++) words[start + i] = own[i];
}
