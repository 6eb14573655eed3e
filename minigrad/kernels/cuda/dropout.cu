// Dropout. The reference is Dropout in minigrad/ops/dropout.py, with the random numbers of minigrad/random.py:
//
//     y = x m / (1 - p), where every element of the mask m is 0 with probability p, else 1
//
// No mask is stored: the backward, which is the same function of g, computes it again. Eight neighbours share a block of
// random numbers, philox((i / 8, number of the draw), seed), and each has 16 bits of it; an element is dropped if they
// are below `threshold` = 65536 p.
//
// `earlier`, where it is not null, is added to the number of the draw. It lies on the card, so that a captured step can
// be replayed with other numbers.

#include "philox.cuh"

extern "C" __global__ void dropout(const scalar *x, long long n, unsigned threshold, float scale,
                                   unsigned long long draw, const unsigned long long *earlier,
                                   unsigned long long seed, scalar *y) {
    const unsigned long long block = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long start = (long long)block * 8;
    if (start >= n) return;
    if (earlier) draw += *earlier;
    const uint4 words = philox(uint4{(unsigned)block, (unsigned)(block >> 32), (unsigned)draw, (unsigned)(draw >> 32)},
                               uint2{(unsigned)seed, (unsigned)(seed >> 32)});
    const unsigned bits[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 8 && start + i < n; i++) {
        const bool kept = (bits[i / 2] >> i % 2 * 16 & 0xFFFF) >= threshold;
        y[start + i] = to_scalar(kept ? to_float(x[start + i]) * scale : 0.0f);
    }
}
