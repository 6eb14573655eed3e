// Runs CUDA kernels on a CPU, so that their results can be checked where there is no card.
//
// The blocks of a launch run one after the other. The threads of a block are coroutines: each runs until it comes to a
// barrier (__syncthreads, or a warp's shuffle or matrix product) and goes on when all threads that share the barrier
// have come there. A warp goes on as long as it can before the next has its turn. `order` turns the order in which
// they run around: results that differ then are a race.
// A barrier that some thread never reaches is reported, and so is a wide load that is not aligned.

#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
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
    ucontext_t context;  // where it starts, and
    jmp_buf place;       // where it goes on: _setjmp and _longjmp ask nothing of the system, as swapcontext does
    std::unique_ptr<char[]> stack;
    dim3 index;
    bool started = false, done = false;
    unsigned exchanges = 0;
};

struct Exchange {  // what the lanes of a warp show each other: this time, and the time before
    alignas(16) unsigned char values[2][WARP][64];
};

static std::vector<Thread> threads;
static std::vector<Barrier> warp_barriers;
static std::vector<Exchange> exchanges;
static Barrier block_barrier;
static unsigned current;
static bool progressed;
static jmp_buf scheduler;
static std::function<void()> body;
static std::vector<unsigned char> dynamic_shared;
static std::string error;

struct Copy {  // cp.async
    void *to;
    const void *from;
    unsigned size, read;
};
static std::vector<std::vector<std::vector<Copy>>> copies;  // of each thread, in groups; the last is still open

inline void yield() {
    if (!_setjmp(threads[current].place)) _longjmp(scheduler, 1);
    threadIdx = threads[current].index;
}

__attribute__((noinline)) inline void resume(Thread &thread) {  // its frame stays until the thread pauses
    if (_setjmp(scheduler)) return;
    if (thread.started) _longjmp(thread.place, 1);
    thread.started = true;
    setcontext(&thread.context);
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
        for (const auto &group : copies[current])
            if (!group.empty()) throw std::runtime_error("cp.async: a thread ends before its copies");
    } catch (const std::exception &problem) {
        error = problem.what();
    }
    threads[current].done = true;
    progressed = true;
    _longjmp(scheduler, 1);
}

// Which of n comes at a step.
inline unsigned in_order(unsigned order, unsigned step, unsigned n) {
    if (order == 0 || (order > 1 && n % 17 == 0)) return step;
    return order == 1 ? n - 1 - step : (step * 17 + 5 * order) % n;
}

inline void run_block(unsigned order) {
    const unsigned n = blockDim.x * blockDim.y * blockDim.z;
    threads.resize(n);
    block_barrier = Barrier{n, 0, 0};
    warp_barriers.assign((n + WARP - 1) / WARP, Barrier{});
    exchanges.resize(warp_barriers.size());
    copies.assign(n, std::vector<std::vector<Copy>>(1));
    for (unsigned i = 0; i < n; i++) {
        Thread &thread = threads[i];
        warp_barriers[i / WARP].size++;
        thread.index = dim3{i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        thread.started = thread.done = false;
        thread.exchanges = 0;
        if (!thread.stack) thread.stack.reset(new char[STACK]);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, run_thread, 0);
    }
    const unsigned warps = warp_barriers.size();
    for (unsigned running = n; running && error.empty();) {
        bool any_progress = false;
        running = 0;
        for (unsigned i = 0; i < warps; i++) {
            const unsigned warp = in_order(order, i, warps), lanes = warp_barriers[warp].size;
            do {  // a warp goes as far as it can before the next one moves: what is not kept apart by barriers, meets
                progressed = false;
                for (unsigned step = 0; step < lanes && error.empty(); step++) {
                    current = warp * WARP + in_order(order, step, lanes);
                    if (threads[current].done) continue;
                    threadIdx = threads[current].index;
                    resume(threads[current]);
                    running += !threads[current].done;
                }
                any_progress |= progressed;
            } while (progressed && error.empty());
        }
        if (running && !any_progress && error.empty())
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

// Every lane shows a value; all of them, by lane. The next exchange does not write over them, and the one after it
// cannot begin before all lanes have come to the next.
template <class T>
std::array<T, WARP> show(const T &value) {
    static_assert(sizeof(T) <= sizeof(Exchange::values[0][0]));
    const unsigned warp = current / WARP;
    auto &values = exchanges[warp].values[threads[current].exchanges++ % 2];
    std::memcpy(values[lane()], &value, sizeof(T));
    wait(warp_barriers[warp]);
    std::array<T, WARP> shown;
    for (unsigned i = 0; i < WARP; i++) std::memcpy(&shown[i], values[i], sizeof(T));
    return shown;
}

inline void check_all_lanes(unsigned mask) {
    if (mask != 0xFFFFFFFFu) throw std::runtime_error("the emulator knows only exchanges of all 32 lanes");
}

template <class T>
void check_aligned(const T *pointer) {
    if (reinterpret_cast<uintptr_t>(pointer) % alignof(T))
        throw std::runtime_error("a wide access that is not aligned");
}

// The tensor core instructions, after the tables of the PTX ISA: groupID = lane / 4, threadID_in_group = lane % 4.

struct Place {
    unsigned row, column;
};

// Fragments of mma.m16n8k16: the place of element i of a lane.
inline Place place_in_a(unsigned lane, unsigned i) {  // 16 x 16
    const bool upper = i < 2 || (i >= 4 && i < 6);
    return {upper ? lane / 4 : lane / 4 + 8, lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}
inline Place place_in_b(unsigned lane, unsigned i) {  // 16 x 8
    return {lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8), lane / 4};
}
inline Place place_in_c(unsigned lane, unsigned i) {  // 16 x 8
    return {i < 2 ? lane / 4 : lane / 4 + 8, lane % 4 * 2 + (i & 1)};
}

struct Holder {
    unsigned char lane, i;
};
struct Holders {  // who holds a place: the tables the other way around
    Holder a[16][16], b[16][8];
    Holders() {
        for (unsigned char lane = 0; lane < WARP; lane++) {
            for (unsigned char i = 0; i < 8; i++) a[place_in_a(lane, i).row][place_in_a(lane, i).column] = {lane, i};
            for (unsigned char i = 0; i < 4; i++) b[place_in_b(lane, i).row][place_in_b(lane, i).column] = {lane, i};
        }
    }
};

// c += a b in float32; `value` gives the number that 16 bits stand for.
template <class Value>
void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Value value) {
    static const Holders holders;
    struct Fragments {
        unsigned short a[8], b[4];
    } own;
    std::memcpy(own.a, a, 16);
    std::memcpy(own.b, &b0, 4);
    std::memcpy(own.b + 2, &b1, 4);
    const auto shown = show(own);
    for (unsigned i = 0; i < 4; i++) {
        const Place place = place_in_c(lane(), i);
        for (unsigned k = 0; k < 16; k++) {
            const Holder left = holders.a[place.row][k], right = holders.b[k][place.column];
            c[i] += value(shown[left.lane].a[left.i]) * value(shown[right.lane].b[right.i]);
        }
    }
}

// ldmatrix.m8n8.x4: lanes 8 i to 8 i + 7 name the rows of matrix i. A lane receives of each matrix row groupID,
// elements 2 threadID_in_group and the next; of the transposed one with .trans. The hardware reads a matrix at a time:
// rows that share banks would be read one after the other, which no kernel here wants.
inline void ldmatrix_x4(unsigned (&matrices)[4], const void *row, bool transposed) {
    const auto rows = show(reinterpret_cast<uintptr_t>(row));
    for (unsigned i = 0; i < 4; i++) {
        unsigned units = 0;  // a row lies in one of 8 units of 4 banks
        for (unsigned j = 0; j < 8; j++) units |= 1u << rows[8 * i + j] / 16 % 8;
        if (units != 0xFF) throw std::runtime_error("ldmatrix: two rows of a matrix lie in the same banks");
        unsigned short pair[2];
        for (unsigned e = 0; e < 2; e++) {
            const unsigned line = transposed ? lane() % 4 * 2 + e : lane() / 4;
            const unsigned place = transposed ? lane() / 4 : lane() % 4 * 2 + e;
            if (rows[8 * i + line] % 16) throw std::runtime_error("ldmatrix: a row that is not aligned to 16 bytes");
            pair[e] = reinterpret_cast<const unsigned short *>(rows[8 * i + line])[place];
        }
        std::memcpy(&matrices[i], pair, 4);
    }
}

// cp.async: the copy happens when it is waited for, and until then what it will write is NaN, so that reading too
// early shows, and so does starting to copy over what others still read. Only the first `read` bytes are read.
inline void cp_async(void *to, const void *from, unsigned size, unsigned read) {
    if (reinterpret_cast<uintptr_t>(to) % size || reinterpret_cast<uintptr_t>(from) % size)
        throw std::runtime_error("cp.async: an address that is not aligned");
    std::memset(to, 0xFF, size);
    copies[current].back().push_back({to, from, size, read});
}

inline void cp_async_commit() { copies[current].emplace_back(); }

inline void cp_async_wait(unsigned pending) {
    auto &groups = copies[current];
    while (groups.size() > pending + 1) {
        for (const Copy &copy : groups.front()) {
            std::memset(copy.to, 0, copy.size);
            std::memcpy(copy.to, copy.from, copy.read);
        }
        groups.erase(groups.begin());
    }
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
inline unsigned __ballot_sync(unsigned mask, bool own) {
    emulator::check_all_lanes(mask);
    const auto shown = emulator::show<char>(own);
    unsigned bits = 0;
    for (unsigned i = 0; i < emulator::WARP; i++) bits |= unsigned(shown[i] != 0) << i;
    return bits;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = a | uint64_t(b) << 32;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; i++) result |= unsigned(bytes >> (selector >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
    return result;
}
inline int __ffs(unsigned bits) { return __builtin_ffs(bits); }
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
