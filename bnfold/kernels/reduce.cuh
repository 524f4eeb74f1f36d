// Sums over the threads of a block, and sets merged over the blocks of a unit: always in the same order, without
// atomics on numbers, so that a result repeats bit by bit.

#pragma once

#include "moments.cuh"
#include "work.cuh"

namespace bnfold {

// How the blocks of a unit hear of each other.
enum class Exchange {
    none,     // there is one
    cluster,  // they read each other's shared memory (compute capability 9.0 on)
    grid,     // through global memory; all blocks of a cooperative launch are resident
    ring,     // as well, while the next units are on their way (ring.cuh)
};

// Memory by which blocks exchange their sets.
template <class Set>
struct Mailbox {
    Set* shared;       // [kMostChannels] in each block
    Set* global;       // [units][ranks][group]; Exchange::grid
    unsigned* words;   // [blocks / ranks], zero before their first use ever; Exchange::grid
};

// Two numbers of each of A channels, summed over the block's threads. Lanes whose numbers are equal modulo `period`
// hold the same channels; `slots` = A * period channels a warp. Thread c gets the sums of channel c: of the warps
// first(c), first(c) + step, ... at their slot(c).
struct Pair {
    float a = 0, b = 0;
};

template <int A>
BNFOLD_DEVICE void put_sums(Pair (&sums)[A], int period, Pair* scratch) {
    const int lane = port::thread() % 32, warp = port::thread() / 32;
#pragma unroll
    for (int i = 0; i < A; ++i) {
        for (int mask = 16; mask >= period; mask /= 2) {
            sums[i].a += port::shuffle_xor(sums[i].a, mask);
            sums[i].b += port::shuffle_xor(sums[i].b, mask);
        }
        if (lane < period) scratch[(warp * period + lane) * A + i] = sums[i];
    }
    port::sync_block();
}

BNFOLD_DEVICE Pair take_sum(const Pair* scratch, int slots, int slot, int first, int step) {
    Pair total;
    for (int warp = first; warp < kThreads / 32; warp += step) {
        total.a += scratch[warp * slots + slot].a;
        total.b += scratch[warp * slots + slot].b;
    }
    return total;
}

// A barrier of the blocks of a unit, in two halves, for one thread of each. The word's highest bit changes when the
// last block arrives, and its other bits are zero again: it is ready for the next use. What a block wrote before a
// barrier of its threads and `arrive`, the others may read behind `await` and a barrier of theirs.
BNFOLD_DEVICE unsigned arrive(unsigned* word, int rank, int ranks) {
    return port::add_release(word, rank == 0 ? 0x80000000u - static_cast<unsigned>(ranks - 1) : 1u);
}
BNFOLD_DEVICE void await(const unsigned* word, unsigned before) {
    while (((before ^ port::load_acquire(word)) & 0x80000000u) == 0) port::spin();
}
BNFOLD_DEVICE void sync_ranks(unsigned* word, int rank, int ranks) {
    port::sync_block();
    if (port::thread() == 0) await(word, arrive(word, rank, ranks));
    port::sync_block();
}

// Merges what thread c of each rank holds for channel c < width; afterwards thread c reads the unit's in
// box.shared[c], in every block. One warp merges a channel, in an order that the number of ranks alone determines.
template <Exchange E, class Set>
BNFOLD_DEVICE void exchange(const Set& mine, const Shape& shape, int width, int unit, int rank, const Mailbox<Set>& box) {
    const int thread = port::thread();
    if constexpr (E == Exchange::none) {
        if (thread < width) box.shared[thread] = mine;
    } else {
        Set* letters = box.shared + kMostChannels;
        if constexpr (E == Exchange::cluster) {
            if (thread < width) letters[thread] = mine;
            port::sync_cluster();
        } else {
            letters = box.global + static_cast<long long>(unit) * shape.ranks * shape.group;
            if (thread < width) letters[rank * shape.group + thread] = mine;
            sync_ranks(box.words + port::block() / shape.ranks, rank, shape.ranks);
        }
        const int lane = thread % 32, warps = kThreads / 32;
        for (int c = thread / 32; c < width; c += warps) {
            Set set;
            for (int other = lane; other < shape.ranks; other += 32) {
                if constexpr (E == Exchange::cluster) {
                    set = merged(set, *port::of_peer(letters + c, other));
                } else {
                    set = merged(set, letters[other * shape.group + c]);
                }
            }
            for (int mask = 1; mask < 32; mask *= 2) set = merged_with_lane(set, mask);
            if (lane == 0) box.shared[c] = set;
        }
        // Nobody changes a letter, or ends, before all have read it.
        if constexpr (E == Exchange::cluster) port::sync_cluster();
        port::sync_block();
    }
}

}  // namespace bnfold
