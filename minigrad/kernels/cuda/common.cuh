// What all kernels share. This text stands before every .cu file when it is compiled, with these names defined:
//   SCALAR_FLOAT32, SCALAR_FLOAT16 or SCALAR_BFLOAT16    the type of the arrays
// Kernels compute in float32 whatever the arrays hold.

#ifdef SCALAR_FLOAT32
typedef float scalar;
#else
struct scalar {
    unsigned short bits;
};
#endif

// Conversions between float32 and what the arrays hold. bfloat16 is the upper half of a float32, rounded to even.

__device__ __forceinline__ unsigned short bfloat16_bits(float x) {
#if defined(EMULATED) || __CUDA_ARCH__ < 800
    unsigned bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;  // NaN
    return (unsigned short)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
#else
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#endif
}

__device__ __forceinline__ float bfloat16_value(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

__device__ __forceinline__ unsigned short float16_bits(float x) {
    unsigned short bits;
#ifdef EMULATED
    _Float16 half = (_Float16)x;
    std::memcpy(&bits, &half, 2);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#endif
    return bits;
}

__device__ __forceinline__ float float16_value(unsigned short bits) {
    float x;
#ifdef EMULATED
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    x = (float)half;
#else
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
#endif
    return x;
}

__device__ __forceinline__ float to_float(scalar x) {
#if defined(SCALAR_FLOAT32)
    return x;
#elif defined(SCALAR_FLOAT16)
    return float16_value(x.bits);
#else
    return bfloat16_value(x.bits);
#endif
}

__device__ __forceinline__ scalar to_scalar(float x) {
#if defined(SCALAR_FLOAT32)
    return x;
#elif defined(SCALAR_FLOAT16)
    return scalar{float16_bits(x)};
#else
    return scalar{bfloat16_bits(x)};
#endif
}

// Neighbouring elements read and written at once: the wider the access, up to 16 bytes, the nearer a kernel comes to
// the memory's speed.

template <class T, int N>
struct __align__(sizeof(T) * N) Pack {
    T values[N];
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load(const T *from) {
    const Pack<T, N> *packs = reinterpret_cast<const Pack<T, N> *>(from);
#ifdef EMULATED
    emulator::check_aligned(packs);
#endif
    return *packs;
}

template <int N, class T>
__device__ __forceinline__ void store(T *to, const Pack<T, N> &pack) {
    Pack<T, N> *packs = reinterpret_cast<Pack<T, N> *>(to);
#ifdef EMULATED
    emulator::check_aligned(packs);
#endif
    *packs = pack;
}

// Sums and maxima over the 32 lanes of a warp, or over all threads of a block. Every thread gets the result, and the
// order of additions is always the same, so results are too, bit for bit.

__device__ __forceinline__ float warp_sum(float x) {
    for (int distance = 16; distance; distance /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int distance = 16; distance; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, distance));
    return x;
}

__device__ __forceinline__ float block_sum(float x) {  // blockDim.x: a multiple of 32
    __shared__ float sums[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.0f);
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_max(float x) {
    __shared__ float maxima[32];
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_max(maxima[threadIdx.x % 32 < blockDim.x / 32 ? threadIdx.x % 32 : 0]);
    __syncthreads();
    return x;
}

// Shared memory whose size the launch names.
#ifdef EMULATED
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulator::shared_memory())
#else
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    type *name = reinterpret_cast<type *>(name##_bytes)
#endif

#ifndef INFINITY  // CuPy's compiler, NVRTC, has no math.h
#define INFINITY __uint_as_float(0x7F800000u)
#endif
