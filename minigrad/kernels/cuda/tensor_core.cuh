// Products on tensor cores, and copies that go on while the threads compute: the PTX instructions behind them (sm_80).
//
// A warp multiplies a (16, 16) by b (16, 8) and adds to c (16, 8) in one instruction, mma.m16n8k16. The matrices are
// spread over the registers of its 32 lanes. Lane l = 4 g + t holds, as pairs of neighbors,
//
//     of a:  a[0] = (g, 2t)  a[1] = (g + 8, 2t)  a[2] = (g, 2t + 8)  a[3] = (g + 8, 2t + 8)   and the column after it
//     of b:  b[0] = (2t, g)  b[1] = (2t + 8, g)                                               and the row after it
//     of c:  c[0] = (g, 2t)  c[1] = (g, 2t + 1)  c[2] = (g + 8, 2t)  c[3] = (g + 8, 2t + 1)
//
//          a: 16 columns             b: 8 columns        c: 8 columns
//         +--------+--------+         +--------+         +--------+
//         |  a[0]  |  a[2]  | 8       |  b[0]  | 8       | c[0,1] | 8      In each 8 x 8 corner of a and c lane l has
//         +--------+--------+         +--------+         +--------+        row g and columns 2t, 2t + 1; in each of b
//         |  a[1]  |  a[3]  | 8       |  b[1]  | 8       | c[2,3] | 8      column g and rows 2t, 2t + 1.
//         +--------+--------+         +--------+         +--------+
//
// So two neighboring c, rounded, are an a: what one product gives can go straight into the next (`as_left`).
// ldmatrix reads four 8 x 8 matrices from shared memory into this arrangement; the lanes name the rows' addresses.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "tensor_core.cuh needs a card of compute capability 8.0 or newer"
#endif

#ifdef SCALAR_FLOAT16
#define PTX_SCALAR "f16"
#else
#define PTX_SCALAR "bf16"
#endif

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

#ifndef EMULATED
__device__ __forceinline__ unsigned shared_address(const void *pointer) {
    return (unsigned)__cvta_generic_to_shared(pointer);
}
#endif

// c += a b
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifdef EMULATED
    emulator::mma_m16n8k16(c, a, b0, b1, [](unsigned short bits) { return to_float(scalar{bits}); });
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32." PTX_SCALAR "." PTX_SCALAR ".f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Lane 8 i + j names row j of matrix i, 16 bytes; lane 4 g + t receives of matrix i the row g, columns 2t and 2t + 1.
__device__ __forceinline__ void load_matrices(unsigned (&matrices)[4], const scalar *row) {
#ifdef EMULATED
    emulator::ldmatrix_x4(matrices, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// The same with every matrix transposed: lane 4 g + t receives column g, rows 2t and 2t + 1.
__device__ __forceinline__ void load_transposed_matrices(unsigned (&matrices)[4], const scalar *row) {
#ifdef EMULATED
    emulator::ldmatrix_x4(matrices, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// Two numbers, rounded, in one register.
__device__ __forceinline__ unsigned pack(float low, float high) {
#ifdef EMULATED
    return to_scalar(low).bits | (unsigned)to_scalar(high).bits << 16;
#else
    unsigned both;
    asm("cvt.rn." PTX_SCALAR "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
}

// c of two neighboring products, (16, 8) and (16, 8), as an a (16, 16).
__device__ __forceinline__ void as_left(unsigned (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack(left[0], left[1]);
    a[1] = pack(left[2], left[3]);
    a[2] = pack(right[0], right[1]);
    a[3] = pack(right[2], right[3]);
}

// Start to copy 16 or 4 bytes from global to shared memory, or zeros where there is nothing to read. `close_copies`
// says that the copies this thread has started are one group; `wait_for_copies<N>` waits for all groups but the last N.
template <int BYTES>
__device__ __forceinline__ void start_copy(void *shared, const void *global, bool there) {
#ifdef EMULATED
    emulator::cp_async(shared, global, BYTES, there ? BYTES : 0);
#else
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                     "r"(there ? 16 : 0)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                     "r"(there ? 4 : 0)
                     : "memory");
    }
#endif
}

__device__ __forceinline__ void close_copies() {
#ifdef EMULATED
    emulator::cp_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int OPEN>
__device__ __forceinline__ void wait_for_copies() {
#ifdef EMULATED
    emulator::cp_async_wait(OPEN);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
#endif
}

// 2^x, 0 for -inf.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef EMULATED
    return std::exp2(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}
