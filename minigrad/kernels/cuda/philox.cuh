// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a function that turns a counter
// and a key into 128 random bits. It has no state, so a thread computes the bits that belong to an element from the
// element's place, and a backward pass computes them again: no mask is stored.
//
// A round multiplies two words of the counter by constants and mixes the halves of the products with the other two
// words and with the key, which moves on by constants from round to round.

__device__ __forceinline__ uint4 philox_round(uint4 counter, uint2 key) {
    const unsigned A = 0xD2511F53u, B = 0xCD9E8D57u;
    return uint4{__umulhi(B, counter.z) ^ counter.y ^ key.x, B * counter.z,
                 __umulhi(A, counter.x) ^ counter.w ^ key.y, A * counter.x};
}

__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        counter = philox_round(counter, key);
        key = uint2{key.x + 0x9E3779B9u, key.y + 0xBB67AE85u};
    }
    return counter;
}
