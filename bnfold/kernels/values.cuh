// Types of activations and parameters, and vectors of them. All arithmetic is in float.

#pragma once

#include "port.cuh"

namespace bnfold {

struct half {
    unsigned short bits;
};
struct bfloat16 {
    unsigned short bits;
};

BNFOLD_DEVICE float to_float(float value) { return value; }
BNFOLD_DEVICE float to_float(half value) { return port::half_to_float(value.bits); }
BNFOLD_DEVICE float to_float(bfloat16 value) {
    return port::float_from_bits(static_cast<unsigned>(value.bits) << 16);
}

template <class T>
BNFOLD_DEVICE T from_float(float value);
template <>
BNFOLD_DEVICE float from_float<float>(float value) {
    return value;
}
template <>
BNFOLD_DEVICE half from_float<half>(float value) {
    return {port::half_from_float(value)};
}
template <>
BNFOLD_DEVICE bfloat16 from_float<bfloat16>(float value) {
    return {port::bfloat16_from_float(value)};
}

// V values side by side: 16 bytes, or a single value where memory is not aligned.
template <class T, int V>
struct alignas(V * sizeof(T)) Vector {
    static_assert(V == 1 || V * sizeof(T) == 16, "a vector is 16 bytes or one value");
    T values[V];
};

// The same values as floats, on which a thread computes.
template <int V>
struct Floats {
    float values[V];
};

// Two values of half the size of a word lie in one, and are converted, chosen and tested together.
template <class T, int V>
constexpr bool in_pairs = sizeof(T) == 2 && V > 1;

BNFOLD_DEVICE float low_of(unsigned word, half) { return port::half_to_float(static_cast<unsigned short>(word)); }
BNFOLD_DEVICE float high_of(unsigned word, half) {
    return port::half_to_float(static_cast<unsigned short>(word >> 16));
}
BNFOLD_DEVICE float low_of(unsigned word, bfloat16) { return port::float_from_bits(word << 16); }
BNFOLD_DEVICE float high_of(unsigned word, bfloat16) { return port::float_from_bits(word & 0xffff0000u); }
BNFOLD_DEVICE unsigned word_of(float low, float high, half) { return port::halves_from_floats(low, high); }
BNFOLD_DEVICE unsigned word_of(float low, float high, bfloat16) { return port::bfloat16s_from_floats(low, high); }

template <class T, int V>
BNFOLD_DEVICE Floats<V> floats_of(const Vector<T, V>& vector) {
    Floats<V> floats;
    if constexpr (in_pairs<T, V>) {
        const auto bits = __builtin_bit_cast(port::Bits16, vector);
#pragma unroll
        for (int j = 0; j < V; j += 2) {
            floats.values[j] = low_of(bits.words[j / 2], T{});
            floats.values[j + 1] = high_of(bits.words[j / 2], T{});
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) floats.values[j] = to_float(vector.values[j]);
    }
    return floats;
}

template <class T, int V>
BNFOLD_DEVICE Vector<T, V> vector_of(const Floats<V>& floats) {
    Vector<T, V> vector;
    if constexpr (in_pairs<T, V>) {
        port::Bits16 bits;
#pragma unroll
        for (int j = 0; j < V; j += 2) bits.words[j / 2] = word_of(floats.values[j], floats.values[j + 1], T{});
        vector = __builtin_bit_cast(decltype(vector), bits);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) vector.values[j] = from_float<T>(floats.values[j]);
    }
    return vector;
}

// Which values of what a ReLU gave are not 0: NaN is one of them, and none is below 0.
//
// Added to a half of a word, 0x7fff sets the highest bit unless the half is 0, and changes nothing above it.
constexpr unsigned kMostInHalves = 0x7fff7fffu;

// In bit j, for value j.
template <class T, int V>
BNFOLD_DEVICE unsigned passed(const Vector<T, V>& rectified) {
    if constexpr (in_pairs<T, V>) {
        const auto bits = __builtin_bit_cast(port::Bits16, rectified);
        return port::highest_bits(bits.words[0] + kMostInHalves, bits.words[1] + kMostInHalves,
                                  bits.words[2] + kMostInHalves, bits.words[3] + kMostInHalves);
    } else {
        unsigned found = 0;
#pragma unroll
        for (int j = 0; j < V; ++j) found |= (to_float(rectified.values[j]) <= 0 ? 0u : 1u) << j;
        return found;
    }
}

// The values of a vector where those of another passed, and 0 elsewhere.
template <class T, int V>
BNFOLD_DEVICE Vector<T, V> where_passed(const Vector<T, V>& vector, const Vector<T, V>& rectified) {
    Vector<T, V> kept;
    if constexpr (in_pairs<T, V>) {
        auto bits = __builtin_bit_cast(port::Bits16, vector);
        const auto by = __builtin_bit_cast(port::Bits16, rectified);
#pragma unroll
        for (int k = 0; k < V / 2; ++k) bits.words[k] &= port::filled_halves(by.words[k] + kMostInHalves);
        kept = __builtin_bit_cast(decltype(kept), bits);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            kept.values[j] = to_float(rectified.values[j]) <= 0 ? from_float<T>(0) : vector.values[j];
        }
    }
    return kept;
}

// The same from the bits of `passed`.
template <class T, int V>
BNFOLD_DEVICE Vector<T, V> where_passed(const Vector<T, V>& vector, unsigned passed) {
    Vector<T, V> kept;
    if constexpr (in_pairs<T, V>) {
        auto bits = __builtin_bit_cast(port::Bits16, vector);
        const unsigned apart = passed | passed << 15;  // bits j and j + 1, 16 places from each other
#pragma unroll
        for (int k = 0; k < V / 2; ++k) bits.words[k] &= port::filled_halves(apart << (15 - 2 * k));
        kept = __builtin_bit_cast(decltype(kept), bits);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) kept.values[j] = passed >> j & 1u ? vector.values[j] : from_float<T>(0);
    }
    return kept;
}

// The vector of that number, from a tensor's values on; `Index` is unsigned or long long.
template <class T, int V, class Index>
BNFOLD_DEVICE Vector<T, V> load(const T* from, Index number) {
    if constexpr (V == 1) {
        return {{from[number]}};
    } else {
        return __builtin_bit_cast(Vector<T, V>, port::load_once(reinterpret_cast<const port::Bits16*>(from) + number));
    }
}

template <class T, int V, class Index>
BNFOLD_DEVICE void store(T* to, Index number, const Vector<T, V>& vector) {
    if constexpr (V == 1) {
        to[number] = vector.values[0];
    } else {
        port::store_once(reinterpret_cast<port::Bits16*>(to) + number, __builtin_bit_cast(port::Bits16, vector));
    }
}

}  // namespace bnfold
