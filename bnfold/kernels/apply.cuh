// Batch norm with statistics that are known: of the whole data set in evaluation, of all ranks in distributed
// training. Each vector by itself; blocks share units as elsewhere, but exchange nothing.

#pragma once

#include "gradients.cuh"

namespace bnfold {

// y = act((x - mean) / sqrt(var + eps) * weight + bias + residual); mean and var may be of another type than weight.
// Without mean it is 0, without var the division is left out.
template <class T, class P, class S, int V, Layout L>
BNFOLD_KERNEL(kThreads)
apply(const T* x, const T* residual, T* y, unsigned char* mask, const P* weight, const P* bias, const S* mean,
      const S* var, long long outer, int channels, int inner, int group, int ranks, int window, float eps, int relu) {
    auto* affine = reinterpret_cast<Affine*>(port::shared());
    Part<V, L> part({outer, channels, inner, group, ranks, window}, port::block() % ranks);
    part.turn_to(port::block() / ranks);
    const int c = port::thread();
    if (c < part.width) {
        const int channel = part.first + c;
        const float inverse = var ? 1.0f / port::square_root(to_float(var[channel]) + eps) : 1.0f;
        affine[c] = {mean ? to_float(mean[channel]) : 0, weight ? to_float(weight[channel]) * inverse : inverse,
                     bias ? to_float(bias[channel]) : 0};
    }
    port::sync_block();
    const Channels<V, L> affines(part, affine);
    for (int i = 0; i < part.windows(); ++i) {
        const Window<V, L> here(part, i);
        const T* const from = x + here.origin;
        const auto source = [&](int, Place<L> place) { return load<T, V>(from, place); };
        normalize<4, T, V>(here, source, affines, residual, y, mask, relu != 0);
    }
}

// dx and dresidual from sums over all ranks, divided by the number of values: mean_dz of dz, mean_dz_x of
// dz * (x - mean).
template <class T, class P, int V, Layout L>
BNFOLD_KERNEL(kThreads)
apply_backward(const T* x, const T* dy, const unsigned char* mask, const P* weight, const P* bias, const float* mean,
               const float* invstd, const float* mean_dz, const float* mean_dz_x, T* dx, T* dresidual,
               long long outer, int channels, int inner, int group, int ranks, int window, int relu) {
    auto* slope = reinterpret_cast<Slope*>(port::shared());
    Part<V, L> part({outer, channels, inner, group, ranks, window}, port::block() % ranks);
    part.turn_to(port::block() / ranks);
    const int c = port::thread();
    if (c < part.width) {
        const int channel = part.first + c;
        const float inverse = invstd[channel];
        slope[c] = {affine_of(channel, weight, bias, mean, invstd), mean_dz[channel],
                    mean_dz_x[channel] * inverse * inverse};
    }
    port::sync_block();
    const Channels<V, L, Slope> slopes(part, slope);
    for (int i = 0; i < part.windows(); ++i) {
        const Gradients<T> gradients = {dx, dresidual};
        gradients.put_window(Window<V, L>(part, i), Source<T, V>{x, dy, mask}, slopes, relu != 0);
    }
}

}  // namespace bnfold
