// Runs CUDA kernels on a CPU, so that their results can be checked where there is no card.
//
// The blocks of a launch run one after the other. The threads of a block are coroutines: each runs until it comes to a
// barrier (__syncthreads, or a warp's shuffle or matrix product) and goes on when all threads that share the barrier
// have come there. `order` turns the order in which they run around: results that differ then are a race.
// A barrier that some thread never reaches is reported, and so is a wide load that is not aligned.

#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define EMULATED 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static  // one block runs at a time

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

static dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulator {

constexpr unsigned WARP = 32;
constexpr size_t STACK = 128 * 1024;

struct Barrier {
    unsigned size = 0, arrived = 0, generation = 0;
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 index;
    bool done = false;
};

struct Exchange {  // what the lanes of a warp show each other
    alignas(16) unsigned char values[WARP][64];
};

static std::vector<Thread> threads;
static std::vector<Barrier> warp_barriers;
static std::vector<Exchange> exchanges;
static Barrier block_barrier;
static unsigned current;
static bool progressed;
static ucontext_t scheduler;
static std::function<void()> body;
static std::vector<unsigned char> dynamic_shared;
static std::string error;

inline void yield() {
    swapcontext(&threads[current].context, &scheduler);
    threadIdx = threads[current].index;
}

inline void wait(Barrier &barrier) {
    const unsigned generation = barrier.generation;
    progressed = true;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        barrier.generation++;
        return;
    }
    while (barrier.generation == generation) yield();
    progressed = true;
}

inline void run_thread() {
    try {
        body();
    } catch (const std::exception &problem) {
        error = problem.what();
    }
    threads[current].done = true;
    progressed = true;
    swapcontext(&threads[current].context, &scheduler);
}

inline void run_block(unsigned order) {
    const unsigned n = blockDim.x * blockDim.y * blockDim.z;
    threads.resize(n);
    block_barrier = Barrier{n, 0, 0};
    warp_barriers.assign((n + WARP - 1) / WARP, Barrier{});
    exchanges.resize(warp_barriers.size());
    for (unsigned i = 0; i < n; i++) {
        Thread &thread = threads[i];
        warp_barriers[i / WARP].size++;
        thread.index = dim3{i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        thread.done = false;
        if (!thread.stack) thread.stack.reset(new char[STACK]);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = &scheduler;
        makecontext(&thread.context, run_thread, 0);
    }
    for (unsigned running = n; running && error.empty();) {
        progressed = false;
        running = 0;
        for (unsigned step = 0; step < n && error.empty(); step++) {
            current = order == 0 ? step : order == 1 ? n - 1 - step : (step * 17 + 5 * order) % n;
            if (order > 1 && n % 17 == 0) current = step;
            if (threads[current].done) continue;
            running++;
            threadIdx = threads[current].index;
            swapcontext(&scheduler, &threads[current].context);
        }
        if (running && !progressed && error.empty())
            error = "a barrier (__syncthreads, a shuffle or a matrix product) that not all of its threads reach";
    }
}

template <class... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::decay_t<Arguments> *>(arguments[I])...);
}

template <class... Arguments>
const char *launch(void (*kernel)(Arguments...), const unsigned *grid, const unsigned *block, unsigned shared_bytes,
                   unsigned order, void **arguments) {
    gridDim = dim3{grid[0], grid[1], grid[2]};
    blockDim = dim3{block[0], block[1], block[2]};
    dynamic_shared.assign(shared_bytes + 16, 0xFF);  // NaN in every format
    body = [=] { call(kernel, arguments, std::index_sequence_for<Arguments...>{}); };
    error.clear();
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0] && error.empty(); x++) {
                blockIdx = dim3{x, y, z};
                run_block(order);
            }
    return error.c_str();
}

inline unsigned lane() { return current % WARP; }

inline unsigned char *shared_memory() {
    auto address = reinterpret_cast<uintptr_t>(dynamic_shared.data());
    return reinterpret_cast<unsigned char *>((address + 15) / 16 * 16);
}

// Every lane shows a value; all of them, by lane. The second barrier keeps the next exchange from writing over them.
template <class T>
std::vector<T> show(const T &value) {
    static_assert(sizeof(T) <= sizeof(Exchange::values[0]));
    const unsigned warp = current / WARP;
    std::memcpy(exchanges[warp].values[lane()], &value, sizeof(T));
    wait(warp_barriers[warp]);
    std::vector<T> shown(WARP);
    for (unsigned i = 0; i < WARP; i++) std::memcpy(&shown[i], exchanges[warp].values[i], sizeof(T));
    wait(warp_barriers[warp]);
    return shown;
}

inline void check_all_lanes(unsigned mask) {
    if (mask != 0xFFFFFFFFu) throw std::runtime_error("the emulator knows only exchanges of all 32 lanes");
}

template <class T>
void check_aligned(const T *pointer) {
    if (reinterpret_cast<uintptr_t>(pointer) % alignof(T)) throw std::runtime_error("a wide access that is not aligned");
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block_barrier); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
    emulator::check_all_lanes(mask);
    emulator::wait(emulator::warp_barriers[emulator::current / emulator::WARP]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    emulator::check_all_lanes(mask);
    const unsigned other = emulator::lane() ^ lanes;
    return emulator::show(value)[other];
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    emulator::check_all_lanes(mask);
    return emulator::show(value)[lane % 32];
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (static_cast<uint64_t>(a) * b) >> 32; }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
using std::max;
using std::min;
