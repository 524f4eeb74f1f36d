// The host half of "port.cuh": the same names where no CUDA compiler runs, so that tests execute the kernels'
// own source on the CPU. Each CUDA thread is a fiber of one OS thread; "host_machine.cpp" schedules them.
//
// Two fibers never run at once, and each sees at once what another wrote: this shows wrong results, divergent
// barriers and deadlocks, but neither missing fences, nor bank conflicts, nor speed.

#pragma once

#include <cstdint>
#include <cstring>

#define BNFOLD_DEVICE inline __attribute__((always_inline))
#define BNFOLD_KERNEL(most_threads) inline void

// Where a call stands in the source: default arguments, so that each call tells its own place.
#define BNFOLD_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace bnfold::host {

// What a kernel may ask about the thread that runs it.
struct Thread {
    int thread, threads, block, blocks;
    char* shared;
    std::uint64_t shared_size;
};
extern Thread* current;

// Ends the launch: "block 0, thread 3: WHAT (FILE:LINE)" is what the caller of the launch gets.
[[noreturn]] void fail(const char* what, const char* file, int line);

// Points at which the scheduler takes over.
void sync_block(const char* file, int line);
void arrive_cluster(const char* file, int line);
void wait_cluster(const char* what, const char* file, int line);
float shuffle_xor(float value, int mask, const char* file, int line);
void wait(const char* what, const char* file, int line);
void progress();
void* of_peer(const void* here, std::uint64_t size, int rank, const char* file, int line);

// Under a random schedule, a thread may also lose its turn after a random number of other port calls.
extern std::int64_t calls_left;
void lose_turn();
BNFOLD_DEVICE void port_call() {
    if (--calls_left == 0) lose_turn();
}

// Copies into shared memory: made when their thread waits for them, or by another seed at once.
void copy_async(void* to, const void* from, const char* file, int line);
void end_group();
void wait_groups(int left);

// A 16-byte access of global memory, as the device allows it. What a launch stores by store_once it must not
// load by load_once, which may find an old value in a cache; this is noticed in sanitized builds only.
void note_store(const void* place);
void check_load(const void* place, const char* file, int line);
BNFOLD_DEVICE void check_global(const void* place, const char* file, int line) {
    port_call();
    const auto address = reinterpret_cast<std::uintptr_t>(place);
    if (address % 16 != 0) fail("misaligned access of 16 bytes", file, line);
    if (address - reinterpret_cast<std::uintptr_t>(current->shared) < current->shared_size) {
        fail("shared memory where global memory is wanted", file, line);
    }
}

}  // namespace bnfold::host

namespace bnfold::port {

BNFOLD_DEVICE int thread() { return host::port_call(), host::current->thread; }
BNFOLD_DEVICE int threads() { return host::current->threads; }
BNFOLD_DEVICE int block() { return host::current->block; }
BNFOLD_DEVICE int blocks() { return host::current->blocks; }

// Exactly as large as the launch says, and filled with NaN (of any of the three types) when a block starts.
BNFOLD_DEVICE char* shared() { return host::port_call(), host::current->shared; }

// All threads of a block must come to the same line, and none may have ended.
BNFOLD_DEVICE void sync_block(BNFOLD_HERE) { host::sync_block(file, line); }

// All lanes of a warp must come to the same line with the same mask.
BNFOLD_DEVICE float shuffle_xor(float value, int mask, BNFOLD_HERE) {
    return host::shuffle_xor(value, mask, file, line);
}

constexpr bool has_clusters = true;
// Between its two halves a thread may do anything, but for arriving again.
BNFOLD_DEVICE void arrive_cluster(BNFOLD_HERE) { host::arrive_cluster(file, line); }
BNFOLD_DEVICE void wait_cluster(BNFOLD_HERE) { host::wait_cluster("wait_cluster", file, line); }
BNFOLD_DEVICE void sync_cluster(BNFOLD_HERE) {
    host::arrive_cluster(file, line);
    host::wait_cluster("sync_cluster", file, line);
}
template <class T>
BNFOLD_DEVICE const T* of_peer(const T* here, int rank, BNFOLD_HERE) {
    return static_cast<const T*>(host::of_peer(here, sizeof(T), rank, file, line));
}

BNFOLD_DEVICE unsigned add_release(unsigned* word, unsigned value, BNFOLD_HERE) {
    host::wait("add_release", file, line);
    host::progress();
    const unsigned before = *word;
    *word = before + value;
    return before;
}
BNFOLD_DEVICE unsigned load_acquire(const unsigned* word, BNFOLD_HERE) {
    host::wait("load_acquire", file, line);
    return *word;
}
BNFOLD_DEVICE void spin(BNFOLD_HERE) { host::wait("spin", file, line); }

struct alignas(16) Bits16 {
    unsigned words[4];
};
constexpr int loads_ahead = 4;
constexpr int kept_in_cache = 96 * 1024;   // little, so that small tensors have more than that
BNFOLD_DEVICE Bits16 load_once(const Bits16* place, BNFOLD_HERE) {
    host::check_global(place, file, line);
#ifdef BNFOLD_SANITIZED
    host::check_load(place, file, line);
#endif
    return *place;
}
BNFOLD_DEVICE void store_once(Bits16* place, Bits16 bits, BNFOLD_HERE) {
    host::check_global(place, file, line);
#ifdef BNFOLD_SANITIZED
    host::note_store(place);
#endif
    *place = bits;
}

// Until the copy is made, its place holds NaN, so that a read of what was there, or is to come, shows.
BNFOLD_DEVICE void copy_async(Bits16* to, const Bits16* from, BNFOLD_HERE) {
    static_cast<void>(load_once(from, file, line));  // checks the access here, where sanitizers watch
    host::copy_async(to, from, file, line);
}
BNFOLD_DEVICE void end_group() { host::end_group(); }
template <int left>
BNFOLD_DEVICE void wait_groups() {
    host::port_call();
    host::wait_groups(left);
}

// Does nothing; but sanitizers see whether the place is in a tensor.
BNFOLD_DEVICE void prefetch(const void* place) { static_cast<void>(*static_cast<const volatile char*>(place)); }

BNFOLD_DEVICE float float_from_bits(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
BNFOLD_DEVICE unsigned bits_from_float(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// NaNs become the one NaN that the device makes.
BNFOLD_DEVICE float half_to_float(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return float_from_bits(fraction != 0 ? 0x7fffffffu : sign | 0x7f800000u);
    if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    return float_from_bits(sign | bits_from_float(static_cast<float>(fraction) * 0x1p-24f));
}
BNFOLD_DEVICE unsigned short half_from_float(float value) {
    const unsigned sign = bits_from_float(value) >> 16 & 0x8000u, size = bits_from_float(value) & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    unsigned half;
    if (size >= 0x477ff000u) {  // 65520, from where infinity is nearest
        half = 0x7c00;
    } else if (size >= 0x38800000u) {  // the smallest normal value, 2^-14
        half = ((size + 0xfff + (size >> 13 & 1)) >> 13) - (112 << 10);
    } else {  // between 0.5 and 1, floats lie 2^-24 apart, as half's subnormal values do: the sum rounds
        half = bits_from_float(float_from_bits(size) + 0.5f) - 0x3f000000u;
    }
    return static_cast<unsigned short>(sign | half);
}

BNFOLD_DEVICE unsigned short bfloat16_from_float(float value) {
    const unsigned bits = bits_from_float(value);
    if (value != value) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
BNFOLD_DEVICE unsigned halves_from_floats(float low, float high) {
    return half_from_float(low) | static_cast<unsigned>(half_from_float(high)) << 16;
}
BNFOLD_DEVICE unsigned bfloat16s_from_floats(float low, float high) {
    return bfloat16_from_float(low) | static_cast<unsigned>(bfloat16_from_float(high)) << 16;
}
BNFOLD_DEVICE float rectified(float value) {
    if (value != value) return float_from_bits(0x7fffffffu);
    return value <= 0 ? 0 : value;
}
BNFOLD_DEVICE unsigned filled_halves(unsigned word) {
    return (word & 0x8000u ? 0xffffu : 0u) | (word & 0x80000000u ? 0xffff0000u : 0u);
}
BNFOLD_DEVICE unsigned highest_bits(unsigned a, unsigned b, unsigned c, unsigned d) {
    const unsigned words[] = {a, b, c, d};
    unsigned bits = 0;
    for (int k = 0; k < 4; ++k) bits |= (words[k] >> 15 & 1u) << 2 * k | (words[k] >> 31) << (2 * k + 1);
    return bits;
}

// What std::sqrt is; <cmath> would take a third of the compiler's time.
BNFOLD_DEVICE float square_root(float value) { return __builtin_sqrtf(value); }
BNFOLD_DEVICE float reciprocal(float value) { return 1 / value; }
BNFOLD_DEVICE unsigned multiply_high(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}

}  // namespace bnfold::port
