// What the C++ that translate.py makes of PTX calls: registers as bits, memory with checks, rounding.

#pragma once

#include "host_launch.h"
#include "host_port.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace bnfold::ptx {

using u8 = std::uint8_t;
using s8 = std::int8_t;
using u16 = std::uint16_t;
using s16 = std::int16_t;
using u32 = std::uint32_t;
using s32 = std::int32_t;
using u64 = std::uint64_t;
using s64 = std::int64_t;
using f32 = float;
using f64 = double;
using pred = bool;

// A register read as a type of its size, or of its lowest bytes.
template <class T, class R>
inline T as(R bits) {
    static_assert(sizeof(T) <= sizeof(R));
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
// A value put into a register: by its bits, or extended by its sign.
template <class R, class T>
inline void set(R& place, T value) {
    static_assert(sizeof(T) <= sizeof(R));
    if constexpr (sizeof(T) == sizeof(R)) {
        std::memcpy(&place, &value, sizeof place);
    } else {
        static_assert(std::is_integral_v<T> && std::is_integral_v<R>);
        place = static_cast<R>(value);
    }
}

// Memory. Addresses of shared memory count from the block's first byte; all others are the host's.
inline char* shared(u64 address, unsigned size, int line) {
    if (address % size != 0) host::fail("misaligned access of shared memory", "PTX", line);
    if (address + size > host::current->shared_size || address > host::current->shared_size) {
        host::fail("access beyond shared memory", "PTX", line);
    }
    return host::current->shared + address;
}
inline char* global(u64 address, unsigned size, int line) {
    if (address < 4096) host::fail("access of the null pointer", "PTX", line);
    if (address % size != 0) host::fail("misaligned access", "PTX", line);
    return reinterpret_cast<char*>(address);
}
template <class T>
inline T load(const char* place) {
    T value;
    std::memcpy(&value, place, sizeof value);
    return value;
}
template <class T>
inline void store(char* place, T value) {
    std::memcpy(place, &value, sizeof value);
}
template <class T>
inline T argument(const host::Argument* arguments, int number) {
    return load<T>(static_cast<const char*>(arguments[number].bytes));
}

template <class T>
inline T add_atomically(char* place, T value, int line) {
    host::wait("atom", "PTX", line);
    host::progress();
    const T before = load<T>(place);
    store<T>(place, before + value);
    return before;
}

// Whole warps exchange, of 32 lanes each.
inline u32 shuffled(u32 bits, s32 mask, s32 clamp, s32 members, int line) {
    if (clamp != 31 || members != -1) host::fail("shfl.sync of a part of a warp", "PTX", line);
    return as<u32>(host::shuffle_xor(as<f32>(bits), mask, "PTX", line));
}

// Arithmetic that C++ has in another way.
inline f32 nan32() { return as<f32>(u32{0x7fffffff}); }
template <class T>
inline bool unordered(T a, T b) {
    return a != a || b != b;
}
template <class T>
inline T shifted_left(T a, u32 count) {
    return count < 8 * sizeof(T) ? static_cast<T>(a << count) : T{0};
}
template <class T>
inline T shifted_right(T a, u32 count) {
    constexpr u32 most = 8 * sizeof(T) - 1;
    if (count <= most) return static_cast<T>(a >> count);
    return std::is_signed_v<T> ? static_cast<T>(a >> most) : T{0};
}
template <class T>
inline T high(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> 8 * sizeof(T));
}
// Zero for what is smaller than a normal number.
inline f32 flushed(f32 value) {
    return std::fabs(value) < std::numeric_limits<f32>::min() ? std::copysign(0.0f, value) : value;
}
inline u32 inserted(u32 bits, u32 into, u32 at, u32 count) {
    at &= 255;
    count &= 255;
    const u32 mask = at < 32 ? (count < 32 ? (1u << count) - 1 : ~0u) << at : 0;
    return (into & ~mask) | (at < 32 ? bits << at & mask : 0);
}
inline u32 permuted(u32 a, u32 b, u32 selector) {
    const u64 bytes = static_cast<u64>(b) << 32 | a;
    u32 found = 0;
    for (int i = 0; i < 4; ++i, selector >>= 4) {
        const u32 byte = static_cast<u32>(bytes >> 8 * (selector & 7)) & 0xff;
        found |= (selector & 8 ? (byte & 0x80 ? 0xffu : 0) : byte) << 8 * i;
    }
    return found;
}
template <class A, class B>
inline s32 dotted(u32 a, u32 b) {
    s32 sum = 0;
    for (int i = 0; i < 32; i += 8) sum += static_cast<A>(a >> i) * static_cast<B>(b >> i);
    return sum;
}
// The funnel: 32 bits of high:low, shifted.
inline u32 funnel_left(u32 low, u32 high, u32 count) {
    return static_cast<u32>((static_cast<u64>(high) << 32 | low) << (count & 31) >> 32);
}
inline u32 funnel_right(u32 low, u32 high, u32 count) {
    return static_cast<u32>((static_cast<u64>(high) << 32 | low) >> (count & 31));
}
inline u32 by_table(u32 a, u32 b, u32 c, u32 table) {
    u32 found = 0;
    for (int i = 0; i < 8; ++i) {
        if ((table >> i & 1) == 0) continue;
        found |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    }
    return found;
}
// The larger or smaller of two floats: of a NaN and a number the number, or else NaN.
template <class T>
inline T largest(T a, T b) {
    if (a == b) return std::signbit(a) ? b : a;
    return a != a ? b : b != b || a > b ? a : b;
}
template <class T>
inline T smallest(T a, T b) {
    if (a == b) return std::signbit(a) ? a : b;
    return a != a ? b : b != b || a < b ? a : b;
}

// 16-bit floats, rounded to nearest even; NaN becomes the one with all bits but the sign.
inline u16 bf16(f32 value) {
    const u32 bits = as<u32>(value);
    if (value != value) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline u16 f16(f32 value) { return port::half_from_float(value); }
inline f32 from_bf16(u16 bits) { return as<f32>(static_cast<u32>(bits) << 16); }
inline f32 from_f16(u16 bits) { return port::half_to_float(bits); }
inline u32 pair(u16 upper, u16 lower) { return static_cast<u32>(upper) << 16 | lower; }
inline f32 rectified(f32 value) { return value <= 0 ? 0 : value; }  // NaN stays
// Bits set where the comparison of two halves holds.
template <class Read, class Compare>
inline u32 compared(u32 a, u32 b, Read read, Compare compare) {
    const bool upper = compare(read(static_cast<u16>(a >> 16)), read(static_cast<u16>(b >> 16)));
    const bool lower = compare(read(static_cast<u16>(a)), read(static_cast<u16>(b)));
    return (upper ? 0xffff0000u : 0) | (lower ? 0xffffu : 0);
}
// To an integer, towards zero or to nearest even, held within its range; NaN is 0.
template <class T, class F>
inline T to_integer(F value) {
    if (value != value) return 0;
    if (value <= static_cast<F>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
    if (value >= static_cast<F>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
    return static_cast<T>(value);
}

// A launch of a kernel that reads its arguments itself; their sizes are those that the PTX declares.
inline const char* launch(void (*kernel)(const host::Argument*), const int* sizes, int number,
                          const host::Launch& shape, const host::Argument* arguments, int count) {
    host::Parameter wanted[64] = {};
    for (int i = 0; i < number && i < count; ++i) wanted[i] = {sizes[i], arguments[i].type.kind};
    if (const char* wrong = host::mismatch(wanted, number, arguments, count)) return wrong;
    struct Call {
        void (*kernel)(const host::Argument*);
        const host::Argument* arguments;
    };
    const Call call{kernel, arguments};
    const auto run = [](const void* it) {
        const auto* call = static_cast<const Call*>(it);
        call->kernel(call->arguments);
    };
    return host::run(shape, run, &call);
}

}  // namespace bnfold::ptx
