// Small kernels by which the host side is tested itself.

#pragma once
#include "port.cuh"

namespace samples {

using namespace bnfold::port;

// The sum of the block's values. The order of additions is fixed.
template <bool before, bool after>
BNFOLD_DEVICE float block_sum(float value) {
    float* partial = reinterpret_cast<float*>(shared());
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    if (thread() % 32 == 0) partial[thread() / 32] = value;
    if (before) sync_block();
    float sum = 0;
    for (int warp = 0; warp < threads() / 32; ++warp) sum += partial[warp];
    if (after) sync_block();
    return sum;
}

template <bool before, bool after>
BNFOLD_KERNEL(1024) sums(const float* values, float* out, int size) {
    float sum = 0;
    for (int i = block() * threads() + thread(); i < size; i += blocks() * threads()) sum += values[i];
    const float all = block_sum<before, after>(sum), negative = block_sum<before, after>(-sum);
    if (thread() == 0) out[block()] = all == -negative ? all : float_from_bits(0x7fffffff);
}

// Each block of a cluster adds up what all of them have, in order of rank.
template <bool last_barrier>
BNFOLD_KERNEL(1024) cluster_sums(const float* values, float* out, int cluster) {
    float* mine = reinterpret_cast<float*>(shared());
    mine[thread()] = values[block() * threads() + thread()];
    sync_cluster();
    float sum = 0;
    for (int rank = 0; rank < cluster; ++rank) {
        const float* theirs = last_barrier ? of_peer(mine + thread(), rank) : of_peer(mine, rank) + thread();
        sum += *theirs;
    }
    if (last_barrier) sync_cluster();
    out[block() * threads() + thread()] = sum;
}

// The same; what a thread does between the two halves of the barrier, nobody else waits for.
template <bool waits>
BNFOLD_KERNEL(1024) split_sums(const float* values, float* out, int cluster) {
    float* mine = reinterpret_cast<float*>(shared());
    mine[thread()] = values[block() * threads() + thread()];
    arrive_cluster();
    float sum = values[block() * threads() + thread()];
    if (waits) wait_cluster();
    for (int rank = 0; rank < cluster; ++rank) {
        if (rank != block() % cluster) sum += *of_peer(mine + thread(), rank);
    }
    if (!waits) wait_cluster();
    sync_cluster();
    out[block() * threads() + thread()] = sum;
}
BNFOLD_KERNEL(1024) arrives_twice() {
    arrive_cluster();
    arrive_cluster();
}
BNFOLD_KERNEL(1024) never_arrives() { wait_cluster(); }
BNFOLD_KERNEL(1024) arrives_alone() {
    if (thread() == 0) arrive_cluster();
}

// out = in * 2, through a ring of `size` pieces of shared memory for each thread. A piece that was read makes room for
// the next. One wait too few, a ring that is shorter than its kernel takes it for, and a piece that is filled before
// it was read are to be noticed.
BNFOLD_DEVICE void put_doubled(char* out, int piece, Bits16 bits) {
    for (unsigned& word : bits.words) word = bits_from_float(2 * float_from_bits(word));
    store_once(reinterpret_cast<Bits16*>(out) + piece * threads() + thread(), bits);
}
template <int missing, int beyond, bool early>
BNFOLD_DEVICE void through_ring(const char* in, char* out, int pieces, int size) {
    constexpr int ahead = 2 + beyond;
    const auto slot = [&](int piece) {
        return reinterpret_cast<Bits16*>(shared()) + piece % size * threads() + thread();
    };
    const auto fill = [&](int piece) {
        if (piece < pieces) {
            copy_async(slot(piece), reinterpret_cast<const Bits16*>(in) + piece * threads() + thread());
        }
        end_group();  // of nothing, at the end: how many are under way does not change
    };
    for (int piece = 0; piece < ahead; ++piece) fill(piece);
    for (int piece = 0; piece < pieces; ++piece) {
        if (early) {
            wait_groups<ahead - 1>();
            fill(piece + size);
            put_doubled(out, piece, *slot(piece));
        } else {
            fill(piece + ahead);
            wait_groups<ahead + missing>();
            put_doubled(out, piece, *slot(piece));
        }
    }
    wait_groups<0>();
}
template <int missing, int beyond>
BNFOLD_KERNEL(1024) ring(const char* in, char* out, int pieces, int size) {
    through_ring<missing, beyond, false>(in, out, pieces, size);
}
BNFOLD_KERNEL(1024) early(const char* in, char* out, int pieces, int size) {
    through_ring<0, 1, true>(in, out, pieces, size);
}
BNFOLD_KERNEL(1024) copy_to(const char* in, int offset) {
    prefetch(in);
    copy_async(reinterpret_cast<Bits16*>(shared() + offset), reinterpret_cast<const Bits16*>(in));
    end_group();
    wait_groups(1);
}
// Copies ten pieces, a group each, and notes which are there after waiting for all but `left`, for each `left` < 10.
BNFOLD_KERNEL(32) waits(const char* in, float* found) {
    auto* slots = reinterpret_cast<Bits16*>(shared());
    for (int left = 0; left < 10; ++left) {
        for (int i = 0; i < 10; ++i) {
            copy_async(slots + i * threads() + thread(), reinterpret_cast<const Bits16*>(in) + thread());
            end_group();
        }
        wait_groups(left);
        for (int i = 0; i < 10; ++i) {
            found[(left * 10 + i) * threads() + thread()] = float_from_bits(slots[i * threads() + thread()].words[0]);
        }
        wait_groups(0);
    }
}

// All blocks wait for each other by a word in global memory; then each reads what the others wrote.
BNFOLD_KERNEL(1024)
grid_sums(const float* values, float* partial, float* out, unsigned* arrived, int wanted) {
    const float sum = block_sum<true, true>(values[block() * threads() + thread()]);
    if (thread() == 0) {
        partial[block()] = sum;
        add_release(arrived, 1);
        while (load_acquire(arrived) < static_cast<unsigned>(wanted)) spin();
    }
    sync_block();
    float total = 0;
    for (int b = 0; b < blocks(); ++b) total += partial[b];
    if (thread() == 0) out[block()] = total;
}

BNFOLD_KERNEL(1024) halves(const unsigned short* halves, float* floats, int size) {
    for (int i = thread(); i < size; i += threads()) floats[i] = half_to_float(halves[i]);
}
BNFOLD_KERNEL(1024) to_halves(const float* floats, unsigned short* halves, int size) {
    for (int i = thread(); i < size; i += threads()) halves[i] = half_from_float(floats[i]);
}

// Two floats in a word, of each type; and what a ReLU makes of them.
BNFOLD_KERNEL(1024)
pairs(const float* floats, unsigned* halves, unsigned* bfloat16s, float* larger, int size) {
    for (int i = 2 * thread(); i < size; i += 2 * threads()) {
        halves[i / 2] = halves_from_floats(floats[i], floats[i + 1]);
        bfloat16s[i / 2] = bfloat16s_from_floats(floats[i], floats[i + 1]);
        larger[i] = rectified(floats[i]);
        larger[i + 1] = rectified(floats[i + 1]);
    }
}
// Of four words at a time.
BNFOLD_KERNEL(1024) halves_of_words(const unsigned* words, unsigned* filled, unsigned* highest, int size) {
    for (int i = 4 * thread(); i < size; i += 4 * threads()) {
        for (int k = i; k < i + 4; ++k) filled[k] = filled_halves(words[k]);
        highest[i / 4] = highest_bits(words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
}

BNFOLD_KERNEL(1024) arithmetic(const unsigned* a, const unsigned* b, unsigned* high, float* root, int size) {
    for (int i = thread(); i < size; i += threads()) {
        high[i] = multiply_high(a[i], b[i]);
        root[i] = square_root(float_from_bits(bits_from_float(static_cast<float>(a[i]))));
    }
}

BNFOLD_KERNEL(1024) copy(const char* from, char* to, int pieces) {
    for (int i = thread(); i < pieces; i += threads()) {
        store_once(reinterpret_cast<Bits16*>(to) + i, load_once(reinterpret_cast<const Bits16*>(from) + i));
    }
}

// Every parameter of another size and kind.
BNFOLD_KERNEL(1024)
parameters(double* out, bool a, short b, int c, long long d, float e, double f, const int* g) {
    if (thread() == 0) *out = a + b + c + static_cast<double>(d) + e + f + (g == nullptr ? 0 : *g);
}

// What goes wrong, one way or another.
BNFOLD_KERNEL(1024) divergent_barrier() {
    if (thread() < 40) sync_block();
}
BNFOLD_KERNEL(1024) divergent_shuffle(float* out) {
    if (thread() % 32 != 31) out[thread()] = shuffle_xor(1, 1);
}
BNFOLD_KERNEL(1024) two_barriers() {
    if (thread() < 32) {
        sync_block();
    } else {
        sync_block();
    }
}
BNFOLD_KERNEL(1024) two_masks(float* out) { out[thread()] = shuffle_xor(1, thread() == 5 ? 2 : 1); }
BNFOLD_KERNEL(1024) crossed() {
    if (thread() < 32) {
        sync_block();
    } else {
        sync_cluster();
    }
}
BNFOLD_KERNEL(1024) never(const unsigned* word) {
    while (load_acquire(word) == 0) spin();
}
BNFOLD_KERNEL(1024) shared_at(float* out, int index) {
    out[thread()] = reinterpret_cast<float*>(shared())[index];
}
BNFOLD_KERNEL(1024) global_at(float* out, int index) {
    if (thread() == 0) out[index] = 1;
}
BNFOLD_KERNEL(1024) overflow(int* out, int by) {
    if (thread() == 0) *out = *out + by;
}
BNFOLD_KERNEL(1024) load_shared(float* out) {
    out[thread()] = float_from_bits(load_once(reinterpret_cast<const Bits16*>(shared())).words[0]);
}
BNFOLD_KERNEL(1024) shift(float* values, int pieces) {
    auto* all = reinterpret_cast<Bits16*>(values);
    for (int i = thread(); i < pieces; i += threads()) store_once(all + i + 1, load_once(all + i));
}
BNFOLD_KERNEL(1024) deep(int* out) {
    volatile char frame[48 << 10];
    frame[0] = 1;
    for (unsigned i = 0; i < sizeof frame; ++i) frame[i] = static_cast<char>(frame[0] + i);
    sync_block();
    out[thread()] = frame[0];
}

}  // namespace samples
