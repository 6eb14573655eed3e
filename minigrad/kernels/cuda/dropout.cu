// Dropout. The reference is Dropout in minigrad/ops/dropout.py, with the random numbers of minigrad/random/counter.py:
//
//     y = x m / (1 - p), where every element of the mask m is 0 with probability p, else 1
//
// No mask is stored: the backward, which is the same function of g, computes it again. Eight neighbors share a block of
// random bits, that of the place i / 8, and each has 16 of them; an element is dropped if they are below 65536 p.
//
// `earlier`, where it is not null, is added to the number of the draw. It lies on the card, so that a captured step can
// be replayed with other numbers.

#include "dropout.cuh"

extern "C" __global__ void dropout(const scalar *x, long long n, Dropout draw, const unsigned long long *earlier,
                                   scalar *y) {
    const unsigned long long block = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long start = (long long)block * 8;
    if (start >= n) return;
    const uint4 words = random_bits(later(draw, earlier), (unsigned)block, (unsigned)(block >> 32));
    const unsigned bits[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 8 && start + i < n; i++) {
        const bool kept = (int)(bits[i / 2] >> i % 2 * 16 & 0xFFFF) >= draw.dropped;
        y[start + i] = to_scalar(kept ? to_float(x[start + i]) * draw.factor : 0.0f);
    }
}
