// Which elements a kernel drops. philox.draw_dropout makes the argument; minigrad/random/counter.py has the random bits.
//
// Half of a counter is the number of the draw, and a draw belongs to one call of one operation. So no two calls under
// one seed, whichever kernels they run, share a counter: the other half, the place, is each kernel's own business.

#include "philox.cuh"

struct Dropout {
    unsigned long long seed, draw;
    int dropped;   // of the 65536 values of 16 random bits
    float factor;  // 65536 / (65536 - dropped)
};

// The draw with what a graph that is replayed adds to its number: a count on the card, where there is one.
__device__ __forceinline__ Dropout later(Dropout dropout, const unsigned long long *earlier) {
    if (earlier) dropout.draw += *earlier;
    return dropout;
}

// The 128 random bits of a place.
__device__ __forceinline__ uint4 random_bits(Dropout dropout, unsigned low, unsigned high) {
    return philox(uint4{low, high, (unsigned)dropout.draw, (unsigned)(dropout.draw >> 32)},
                  uint2{(unsigned)dropout.seed, (unsigned)(dropout.seed >> 32)});
}
