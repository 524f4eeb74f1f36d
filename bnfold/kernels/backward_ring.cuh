// Backward of units that pass through a ring: see ring.cuh and long_ring.cuh. x and dy are copied; dz takes dy's place
// when it is summed.

#pragma once

#include "gradients.cuh"
#include "long_ring.cuh"

namespace bnfold {

// What the sums of a channel begin with.
struct Begun : Affine {
    float inverse;
};

template <class T, class P, int V, Layout L, Gate G>
struct BackwardTask {
    using Place = typename Track<V, L>::Place;
    static constexpr int A = L == Layout::columns ? V : 1;
    static constexpr int tensors = 2, vectors = 2, apart = vectors * kThreads;
    static constexpr bool notes = G == Gate::noted, fetches = false, recalls = notes;

    const Part<V, L>& part;
    const Source<T, V>& from;
    const Gradients<T>& to;
    const P *weight, *bias;
    const float *mean, *invstd;
    const Totals<P>& totals;
    Team& team;
    Sums* letters;      // [channels][ranks]
    float share;        // 1 / the values of a channel
    bool frozen;
    // In shared memory, of a unit's channels: of the one that is written its gradients' map and sums; what the sums of
    // it and of the next three begin with; then scratch.
    Slope* slope;
    Sums* sums_of;
    Begun* begun_of;
    Sums* scratch;
    Sums sums[A] = {};

    // The items of a thread's channels, as it goes through a vector's values.
    template <class Item>
    struct Own {
        Item own[A];

        template <class F>
        BNFOLD_DEVICE void each(F f) const {
#pragma unroll
            for (int j = 0; j < V; ++j) f(j, own[j % A]);
        }
    };
    struct Note {
        unsigned char bits = 0;
    };
    struct More {};
    using Again = Note;
    using Origins = Own<Affine>;
    using Channels = Own<Slope>;

    // Lanes that hold different channels: a power of two.
    BNFOLD_DEVICE int period() const { return L == Layout::columns ? static_cast<int>(part.row) : 1; }
    template <class Item, class Shared>
    BNFOLD_DEVICE Own<Item> own(const Shared* shared) const {
        const int first = L == Layout::columns ? (port::thread() & (period() - 1)) * A : 0;
        Own<Item> found;
#pragma unroll
        for (int i = 0; i < A; ++i) found.own[i] = shared[first + i];
        return found;
    }
    BNFOLD_DEVICE Begun* begun(int k) const { return begun_of + k % 4 * kMostChannels; }
    BNFOLD_DEVICE void prepare() const {
        prepare(0);
        prepare(1);
        port::sync_block();
    }
    // Before a barrier of the block.
    BNFOLD_DEVICE void prepare(int k) const {
        const int c = port::thread(), channel = team.channel(k) + c;
        if (k >= team.units || c >= team.group) return;
        begun(k)[c] = {affine_of(channel, weight, bias, mean, invstd), invstd[channel]};
    }

    BNFOLD_DEVICE const port::Bits16* source(int s, Place at) const {
        return reinterpret_cast<const port::Bits16*>(s == 0 ? from.x : from.dy) + at;
    }
    BNFOLD_DEVICE Note note(Place at) const {
        if constexpr (notes) return {from.mask[at]};
        return {};
    }
    BNFOLD_DEVICE Origins origins(int k) const { return own<Affine>(begun(k)); }
    BNFOLD_DEVICE void begin(int, const port::Bits16*) {
#pragma unroll
        for (int i = 0; i < A; ++i) sums[i] = {};
    }
    BNFOLD_DEVICE static Given<G, T, V> given(const port::Bits16* slot, Note note) {
        Given<G, T, V> found;
        found.x = __builtin_bit_cast(Vector<T, V>, slot[0]);
        found.dy = __builtin_bit_cast(Vector<T, V>, slot[apart]);
        found.bits = note.bits;
        return found;
    }
    template <bool Stays>
    BNFOLD_DEVICE void add(port::Bits16* slot, const Origins& origins, Note note) {
        const Given<G, T, V> here = given(slot, note);
        const Vector<T, V> dz = here.dz(origins);
        if constexpr (Stays && G != Gate::open) slot[apart] = __builtin_bit_cast(port::Bits16, dz);
        const Floats<V> xs = floats_of(here.x), dzs = floats_of(dz);
        origins.each([&](int j, const Affine& affine) {
            sums[j % A].dz += dzs.values[j];
            sums[j % A].dz_x += dzs.values[j] * (xs.values[j] - affine.mean);
        });
    }

    BNFOLD_DEVICE void centre(int) const {}

    BNFOLD_DEVICE void tell(int k, int) {
        const Left<A> left = {period()};
        put(sums, left, scratch);
        port::sync_block();
        each_channel<kWarps>(team.group, [&](int c, bool first) {
            const auto get = [&](int warp, int n) { return scratch[left.place(c, warp, n / kWarps)]; };
            const Sums all = whole<kWarps, Left<A>::most>(left.sets(), get);
            if (first) letters[static_cast<long long>(team.channel(k) + c) * team.ranks + team.rank] = all;
        });
        team.tell(k);
    }
    BNFOLD_DEVICE void hear(int k) const {
        team.hear(k);
        each_channel<kListeners<V, L>>(team.group, [&](int c, bool first) {
            const Sums* box = letters + static_cast<long long>(team.channel(k) + c) * team.ranks;
            const auto get = [&](int lane, int n) { return (box + lane)[n]; };
            const Sums all = whole<kListeners<V, L>, kMostRanks>(team.ranks, get);
            if (!first) return;
            const Begun known = begun(k)[c];
            const float through_x = all.dz_x * share * known.inverse * known.inverse;
            slope[c] = {known, frozen ? 0 : all.dz * share, frozen ? 0 : through_x};
            sums_of[c] = all;
        });
        port::sync_block();
    }
    BNFOLD_DEVICE void leave(int k) const {
        const int c = port::thread(), channel = team.channel(k) + c;
        if (team.rank == 0 && c < team.group) totals.note(channel, sums_of[c], invstd[channel]);
    }

    BNFOLD_DEVICE Channels channels() const { return own<Slope>(slope); }
    BNFOLD_DEVICE bool writes() const { return to.dx != nullptr; }
    BNFOLD_DEVICE More fetch(Place) const { return {}; }
    BNFOLD_DEVICE Again recall(Place at) const { return note(at); }
    BNFOLD_DEVICE void write(const port::Bits16* slot, Place at, const Channels& channels, More) const {
        if (!writes()) return;
        const auto dz = __builtin_bit_cast(Vector<T, V>, slot[apart]);
        finish(floats_of(__builtin_bit_cast(Vector<T, V>, slot[0])), dz, at, channels);
    }
    BNFOLD_DEVICE void write_again(const port::Bits16* slot, Place at, const Channels& channels, Again note) const {
        const Given<G, T, V> here = given(slot, note);
        finish(floats_of(here.x), here.dz(channels), at, channels);
    }
    BNFOLD_DEVICE void finish(Floats<V> floats, const Vector<T, V>& dz, Place at, const Channels& channels) const {
        const Floats<V> dzs = floats_of(dz);
        channels.each([&](int j, const Slope& of) {
            const float x = frozen ? of.mean : floats.values[j];  // which is then of no consequence, and may be NaN
            floats.values[j] = of.scale * (dzs.values[j] - of.mean_dz - (x - of.mean) * of.mean_dz_x);
        });
        store<T, V>(to.dx, at, vector_of<T>(floats));
        if (to.dresidual) store<T, V>(to.dresidual, at, dz);
    }
};

// All units of a block.
template <class T, class P, int V, Layout L, Exchange E>
struct BackwardRing {
    const Shape& shape;
    const Source<T, V>& from;
    const Gradients<T>& to;
    const P *weight, *bias;
    const float *mean, *invstd;
    const Totals<P>& totals;
    Sums* letters;
    unsigned* words;
    bool frozen;

    template <Gate G>
    BNFOLD_DEVICE void pass() const {
        const float share = 1.0f / (static_cast<float>(shape.outer) * static_cast<float>(shape.inner));
        Team team(shape, words);
        Part<V, L> part(shape, team.rank);
        part.turn_to(team.unit(0));
        auto* ring = reinterpret_cast<port::Bits16*>(port::shared());
        auto* slope = reinterpret_cast<Slope*>(ring + 2 * shape.window);
        auto* sums = reinterpret_cast<Sums*>(slope + kMostChannels);
        auto* begun = reinterpret_cast<Begun*>(sums + kMostChannels);
        auto* scratch = reinterpret_cast<Sums*>(begun + 4 * kMostChannels);
        BackwardTask<T, P, V, L, G> task = {part, from,    to,    weight, bias,  mean, invstd, totals,
                                            team, letters, share, frozen, slope, sums, begun,  scratch};
        if constexpr (E == Exchange::ring) {
            Ring<decltype(task), V, L>(task, part, ring, team).pass();
        } else {
            LongRing<decltype(task), V, L>(task, part, ring, team).pass();
        }
    }
    BNFOLD_DEVICE void pass(bool relu) const {
        if (!relu) {
            pass<Gate::open>();
        } else {
            from.mask ? pass<Gate::noted>() : pass<Gate::again>();
        }
    }
};

}  // namespace bnfold
