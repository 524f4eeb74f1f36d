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
// To nearest even. NaN keeps its upper bits and becomes quiet.
template <>
BNFOLD_DEVICE bfloat16 from_float<bfloat16>(float value) {
    const unsigned bits = port::bits_from_float(value);
    if (value != value) return {static_cast<unsigned short>(bits >> 16 | 0x40u)};
    return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

// V values side by side: 16 bytes, or a single value where memory is not aligned.
template <class T, int V>
struct alignas(V * sizeof(T)) Vector {
    static_assert(V == 1 || V * sizeof(T) == 16, "a vector is 16 bytes or one value");
    T values[V];
};

template <class T, int V>
BNFOLD_DEVICE Vector<T, V> load(const T* place) {
    if constexpr (V == 1) {
        return {{*place}};
    } else {
        return __builtin_bit_cast(Vector<T, V>, port::load_once(reinterpret_cast<const port::Bits16*>(place)));
    }
}

template <class T, int V>
BNFOLD_DEVICE void store(T* place, const Vector<T, V>& vector) {
    if constexpr (V == 1) {
        *place = vector.values[0];
    } else {
        port::store_once(reinterpret_cast<port::Bits16*>(place), __builtin_bit_cast(port::Bits16, vector));
    }
}

}  // namespace bnfold
