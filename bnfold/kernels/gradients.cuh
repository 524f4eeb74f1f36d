// What backward reads, makes of a vector, and writes.

#pragma once

#include "moments.cuh"
#include "normalize.cuh"

namespace bnfold {

// What the gradient of one channel's values needs.
struct Slope : Affine {
    float mean_dz, mean_dz_x;   // the second times invstd^2

    BNFOLD_DEVICE float operator()(float x, float dz) const {
        // Where x is of no consequence, as with frozen statistics, it may be infinite or NaN.
        const float through_x = mean_dz_x == 0 ? 0 : (x - mean) * mean_dz_x;
        return scale * (dz - mean_dz - through_x);
    }
};

// Which values passed the ReLU: all where there is none; those that forward noted in the mask; or it is found again
// from x.
enum class Gate { open, noted, again };

// The tensors that backward reads.
template <class T, int V>
struct Source {
    const T *x, *dy;
    const unsigned char* mask;

    // From a place on.
    BNFOLD_DEVICE Source at(long long origin) const {
        return {x + origin, dy + origin, mask ? mask + origin / V : nullptr};
    }
};

// What is loaded of one vector.
template <Gate G, class T, int V>
struct Given {
    Vector<T, V> x, dy;
    unsigned char bits;

    Given() = default;
    template <class Index>
    BNFOLD_DEVICE Given(const Source<T, V>& from, Index place)
        : x(load<T, V>(from.x, place)), dy(load<T, V>(from.dy, place)),
          bits(G == Gate::noted ? from.mask[place] : 0) {}

    template <class Affines>
    BNFOLD_DEVICE Vector<T, V> dz(const Affines& affines) const {
        if constexpr (G == Gate::open) return dy;
        if constexpr (G == Gate::noted) return where_passed(dy, static_cast<unsigned>(bits));
        if constexpr (G == Gate::again) return where_passed(dy, finished<true, T>(mapped(x, affines)));
    }
};

// Where backward writes dx and, where there is a residual behind the ReLU, its gradient dz.
template <class T>
struct Gradients {
    T *dx, *dresidual;

    // From a place on.
    BNFOLD_DEVICE Gradients at(long long origin) const {
        return {dx + origin, dresidual ? dresidual + origin : nullptr};
    }

    template <int V, class Slopes, class Index>
    BNFOLD_DEVICE void put(const Vector<T, V> x, const Vector<T, V> dz, const Slopes& slopes, Index place) const {
        Floats<V> xs = floats_of(x);
        const Floats<V> dzs = floats_of(dz);
        slopes.each([&](int j, const Slope& slope) { xs.values[j] = slope(xs.values[j], dzs.values[j]); });
        store<T, V>(dx, place, vector_of<T>(xs));
        if (dresidual) store<T, V>(dresidual, place, dz);
    }

    // Of a window that is read. Values of `planes` belong to several channels, which takes registers.
    template <Gate G, int V, Layout L>
    BNFOLD_DEVICE void put_window(const Window<V, L>& window, const Source<T, V>& from,
                                  const Channels<V, L, Slope>& slopes) const {
        const Gradients to = at(window.origin);
        const auto here = from.at(window.origin);
        window.template each_vector<L == Layout::planes ? 1 : 2>(
            [&](int, Place<L> place) { return Given<G, T, V>(here, place); },
            [&](int, Place<L> place, unsigned offset, const Given<G, T, V>& given) {
                to.template put<V>(given.x, given.dz(slopes.at(offset)), slopes.at(offset), place);
            });
    }
    template <int V, Layout L>
    BNFOLD_DEVICE void put_window(const Window<V, L>& window, const Source<T, V>& from,
                                  const Channels<V, L, Slope>& slopes, bool relu) const {
        if (!relu) {
            put_window<Gate::open>(window, from, slopes);
        } else if (from.mask) {
            put_window<Gate::noted>(window, from, slopes);
        } else {
            put_window<Gate::again>(window, from, slopes);
        }
    }
};

template <class P>
BNFOLD_DEVICE Affine affine_of(int channel, const P* weight, const P* bias, const float* mean, const float* invstd) {
    return {mean[channel], weight ? to_float(weight[channel]) * invstd[channel] : invstd[channel],
            bias ? to_float(bias[channel]) : 0};
}

// Where the gradients of the parameters go, or where only the sums are wanted, they.
template <class P>
struct Totals {
    P *dweight, *dbias;
    float *sum_dz, *sum_dz_x;

    // By one thread of the device for each channel.
    BNFOLD_DEVICE void note(int channel, const Sums& all, float inverse) const {
        if (dweight) dweight[channel] = from_float<P>(all.dz_x * inverse);
        if (dbias) dbias[channel] = from_float<P>(all.dz);
        if (sum_dz) {
            sum_dz[channel] = all.dz;
            sum_dz_x[channel] = all.dz_x;
        }
    }
};

}  // namespace bnfold
