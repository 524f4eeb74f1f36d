// What the kernels ask of the machine, and the only place with intrinsics and PTX: no CUDA header is needed, so
// that NVRTC compiles them from these files alone. Where no CUDA compiler runs, "host_port.h" gives the same names.
//
// Grids and blocks have one dimension; blocks are a multiple of 32 threads; shared memory is dynamic.

#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

#define BNFOLD_DEVICE __device__ __forceinline__
#define BNFOLD_KERNEL(most_threads) __global__ void __launch_bounds__(most_threads, 1)

namespace bnfold::port {

BNFOLD_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
BNFOLD_DEVICE int threads() { return static_cast<int>(blockDim.x); }
BNFOLD_DEVICE int block() { return static_cast<int>(blockIdx.x); }
BNFOLD_DEVICE int blocks() { return static_cast<int>(gridDim.x); }

// The block's shared memory, aligned to 16 bytes.
BNFOLD_DEVICE char* shared() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

// All threads of the block arrive before one goes on; what they wrote is seen by all.
BNFOLD_DEVICE void sync_block() { __syncthreads(); }

// The value of the lane whose index differs in the bits of `mask`. Called by whole warps.
BNFOLD_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Clusters (compute capability 9.0 on; code for others must not call these): consecutive blocks that read each
// other's shared memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool has_clusters = false;
#else
constexpr bool has_clusters = true;
#endif
BNFOLD_DEVICE void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}
// The two halves of sync_cluster: what a thread wrote before it arrives is seen by those that have waited.
BNFOLD_DEVICE void arrive_cluster() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
BNFOLD_DEVICE void wait_cluster() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// The same place in the shared memory of another block of the cluster.
template <class T>
BNFOLD_DEVICE const T* of_peer(const T* here, int rank) {
    unsigned long long there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<unsigned long long>(here)), "r"(rank));
    return reinterpret_cast<const T*>(there);
}

// Words in global memory by which resident blocks wait for each other.
BNFOLD_DEVICE unsigned add_release(unsigned* word, unsigned value) {
    unsigned before;
    asm volatile("atom.add.release.gpu.u32 %0, [%1], %2;" : "=r"(before) : "l"(word), "r"(value) : "memory");
    return before;
}
BNFOLD_DEVICE unsigned load_acquire(const unsigned* word) {
    unsigned value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}
// Called in each turn of a loop that waits.
BNFOLD_DEVICE void spin() {}

// 16 bytes that are read once, or written and not read again by this kernel: kept out of L1.
struct alignas(16) Bits16 {
    unsigned words[4];
};
// How many such loads a thread has under way where it also adds up what it loads: as registers allow.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int loads_ahead = 2;
#else
constexpr int loads_ahead = 8;
#endif
// Of what the blocks of a whole device read, bytes for each of them that L2 still has when it is read again: about half
// of it. A multiprocessor's share of L2 is 80 KB with compute capability 8.6 (8.7: 256 KB), 380 KB with 8.0 and 9.0, and
// 570 to 850 KB with 8.9 and from 10.0 on.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870)
constexpr int kept_in_cache = 32 * 1024;
#elif defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1000)
constexpr int kept_in_cache = 384 * 1024;
#else
constexpr int kept_in_cache = 192 * 1024;
#endif
BNFOLD_DEVICE Bits16 load_once(const Bits16* place) {
    Bits16 bits;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(bits.words[0]), "=r"(bits.words[1]), "=r"(bits.words[2]), "=r"(bits.words[3])
        : "l"(place));
    return bits;
}
BNFOLD_DEVICE void store_once(Bits16* place, Bits16 bits) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(place), "r"(bits.words[0]), "r"(bits.words[1]),
                 "r"(bits.words[2]), "r"(bits.words[3])
                 : "memory");
}

// Copies of 16 bytes into shared memory that go on while the thread does other things. What was copied since the last
// end_group, be it nothing, is a group. A thread that has waited for a group reads what it copied itself; until then
// nobody may read or write the place, nor change what is copied.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
BNFOLD_DEVICE void copy_async(Bits16* to, const Bits16* from) { *to = load_once(from); }
BNFOLD_DEVICE void end_group() {}
template <int left>
BNFOLD_DEVICE void wait_groups() {}
#else
BNFOLD_DEVICE void copy_async(Bits16* to, const Bits16* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(to))),
                 "l"(from)
                 : "memory");
}
BNFOLD_DEVICE void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// For all groups but the latest `left`.
template <int left>
BNFOLD_DEVICE void wait_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}
#endif

// Asks for the 32 bytes around a place in global memory, so that L2 has them later.
BNFOLD_DEVICE void prefetch(const void* place) { asm volatile("prefetch.global.L2 [%0];" ::"l"(place)); }

// IEEE half precision and bfloat16, rounded to nearest even; NaN becomes the one with all bits but the sign.
BNFOLD_DEVICE float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
BNFOLD_DEVICE unsigned short half_from_float(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
BNFOLD_DEVICE unsigned short bfloat16_from_float(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
BNFOLD_DEVICE unsigned halves_from_floats(float low, float high) {
    return half_from_float(low) | static_cast<unsigned>(half_from_float(high)) << 16;
}
BNFOLD_DEVICE unsigned bfloat16s_from_floats(float low, float high) {
    return bfloat16_from_float(low) | static_cast<unsigned>(bfloat16_from_float(high)) << 16;
}
// The larger of a number and +0; NaN stays the NaN that arithmetic makes.
BNFOLD_DEVICE float rectified(float value) { return value <= 0 ? 0 : value; }
#else
BNFOLD_DEVICE unsigned halves_from_floats(float low, float high) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
BNFOLD_DEVICE unsigned bfloat16s_from_floats(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
BNFOLD_DEVICE unsigned short bfloat16_from_float(float value) {
    return static_cast<unsigned short>(bfloat16s_from_floats(value, 0));
}
BNFOLD_DEVICE float rectified(float value) {
    float larger;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(larger) : "f"(value));
    return larger;
}
#endif
// Each half of a word filled with its highest bit.
BNFOLD_DEVICE unsigned filled_halves(unsigned word) {
    unsigned filled;
    asm("prmt.b32 %0, %1, 0, 0xbb99;" : "=r"(filled) : "r"(word));
    return filled;
}
// The highest bits of eight halves: bit j is that of the j-th, the low one of the first word being number 0.
BNFOLD_DEVICE unsigned highest_bits(unsigned a, unsigned b, unsigned c, unsigned d) {
    // Bytes filled with these bits are 0 or -1; they are multiplied with -1, -2, -4, ... -128 and added up.
    unsigned first, second, bits;
    asm("prmt.b32 %0, %1, %2, 0xfdb9;" : "=r"(first) : "r"(a), "r"(b));
    asm("prmt.b32 %0, %1, %2, 0xfdb9;" : "=r"(second) : "r"(c), "r"(d));
    asm("dp4a.s32.s32 %0, %1, %2, 0;" : "=r"(bits) : "r"(first), "r"(0xf8fcfeffu));
    asm("dp4a.s32.s32 %0, %1, %2, %0;" : "+r"(bits) : "r"(second), "r"(0x80c0e0f0u));
    return bits;
}

BNFOLD_DEVICE float float_from_bits(unsigned bits) { return __uint_as_float(bits); }
BNFOLD_DEVICE unsigned bits_from_float(float value) { return __float_as_uint(value); }
BNFOLD_DEVICE float square_root(float value) { return __fsqrt_rn(value); }
// 1 / a number from 1 to 2^126, with an error of one unit in the last place.
BNFOLD_DEVICE float reciprocal(float value) {
    float found;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(value));
    return found;
}
BNFOLD_DEVICE unsigned multiply_high(unsigned a, unsigned b) { return __umulhi(a, b); }

}  // namespace bnfold::port

#else
#include "host_port.h"
#endif

namespace bnfold::port {

// For all groups but the latest `left`, which is known at run time only; where it is large, for some of those too.
BNFOLD_DEVICE void wait_groups(int left) {
    if (left >= 6) {
        wait_groups<6>();
    } else if (left >= 4) {
        wait_groups<4>();
    } else if (left >= 2) {
        wait_groups<2>();
    } else if (left == 1) {
        wait_groups<1>();
    } else {
        wait_groups<0>();
    }
}

}  // namespace bnfold::port
