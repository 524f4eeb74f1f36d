// Units of which a block's part is longer than its ring (ring.cuh). The first turns of a unit only pass through: they
// are summed, and copied once more when they are written. The last ones stay until then. Of a unit of n turns, k of
// which stay, the ring's turns are in this order, each copied as soon as the one that many places before it is done:
//
//     0 .. n-k-1     summed, and let go
//     n-k .. n-1     summed; then all blocks' sums are waited for; then written
//     0 .. e-1       written
//     n-k-1 .. e     written, the latest first, which are the likeliest to be in L2
//
// L2 is asked for the first e turns before the blocks wait for each other, so that memory does not.

#pragma once

#include "ring.cuh"

namespace bnfold {

constexpr int kAsked = 16;   // vectors of each thread that L2 is asked for while a block waits: 128 KB

// The turns of a unit in the order in which they are copied, and written again.
struct Order {
    const int asked, passing, most, length;   // turns that L2 is asked for, that pass, all; copies of them
    int unit = 0, at = 0;

    BNFOLD_DEVICE Order(int e, int p, int m, bool writes)
        : asked(e < p ? e : p), passing(p), most(m), length(writes ? m + p : m) {}
    BNFOLD_DEVICE int again(int i) const { return i < asked ? i : passing - 1 - (i - asked); }
    BNFOLD_DEVICE int turn() const { return at < most ? at : again(at - most); }
    BNFOLD_DEVICE void next() {
        if (++at < length) return;
        at = 0;
        ++unit;
    }
};

// A task is one of a ring, with this in addition:
//
//     writes()                                     whether units are written; if not, all their turns only pass
//     write_again(slot, place, channels(), note)   writes a vector that was copied once more, by what `add` was told
template <class Task, int V, Layout L>
struct LongRing {
    static constexpr int U = Task::vectors, apart = U * kThreads, turn_slots = Task::tensors * apart;
    Task& task;
    const Part<V, L>& part;
    const Track<V, L> track;
    port::Bits16* const slots;          // [size][tensors][U][kThreads], of this thread
    const int size;                     // in turns
    const int mine;                     // of a unit: vectors of this thread
    Order order;                        // of what is copied next
    int under_way = 0;                  // turns copied for which nobody has waited
    int at = 0;                         // the slot of the turn that is treated

    BNFOLD_DEVICE LongRing(Task& t, const Part<V, L>& p, port::Bits16* memory, const Team& team)
        : task(t), part(p), track(p, team.teams), slots(memory + port::thread()), size(p.shape.window / apart),
          mine(quotient(count() - port::thread(), kThreads)),
          order(kAsked / (Task::tensors * U), passing(turns()), turns(), task.writes()) {}

    BNFOLD_DEVICE int count() const { return static_cast<int>(part.end - part.begin); }
    BNFOLD_DEVICE int turns() const { return quotient(count(), apart); }
    BNFOLD_DEVICE int passing(int all) const { return task.writes() ? all - least(size, all - 1) : all; }
    BNFOLD_DEVICE static int least(int a, int b) { return a < b ? a : b; }
    BNFOLD_DEVICE static int quotient(int a, int b) { return a > 0 ? (a + b - 1) / b : 0; }   // rounded up

    BNFOLD_DEVICE port::Bits16* slot(int u) const { return slots + at + u * kThreads; }
    BNFOLD_DEVICE void on() {
        at += turn_slots;
        if (at == size * turn_slots) at = 0;
    }
    // This thread's vectors of a turn: U but in the last one.
    BNFOLD_DEVICE int vectors(int turn) const { return least(U, mine - turn * U); }

    // The next turn takes the place of one that is done.
    BNFOLD_DEVICE void copy() {
        if (order.unit == task.team.units) return;
        const int turn = order.turn();
        auto places = track.ahead(part, order.unit, turn * U);
        typename Track<V, L>::Place from[U];
        places.take(from);
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (u >= vectors(turn)) continue;
#pragma unroll
            for (int s = 0; s < Task::tensors; ++s) port::copy_async(slot(u) + s * apart, task.source(s, from[u]));
        }
        port::end_group();
        ++under_way;
        order.next();
    }
    BNFOLD_DEVICE void wait() { port::wait_groups(--under_way); }

    using Notes = typename Task::Note[U];
    BNFOLD_DEVICE void note(int k, int turn, Notes& noted) const {
        if constexpr (Task::notes) {
            auto places = track.ahead(part, k, turn * U);
            typename Track<V, L>::Place from[U];
            places.take(from);
#pragma unroll
            for (int u = 0; u < U; ++u) {
                if (u < vectors(turn)) noted[u] = task.note(from[u]);
            }
        }
    }

    // Calls each(turn, the notes of its vectors) for turn(first) ... turn(last - 1).
    template <class Turn, class Each>
    BNFOLD_DEVICE void turns(int k, int first, int last, Turn turn, Each each) {
        Notes noted = {}, next = {};
        note(k, turn(first), noted);
#pragma unroll 1
        for (int i = first; i < last; ++i) {
            if (i + 1 < last) note(k, turn(i + 1), next);
            each(turn(i), noted);
#pragma unroll
            for (int u = 0; u < U; ++u) noted[u] = next[u];
        }
    }

    template <bool LetGo>
    BNFOLD_DEVICE void sum(int k, int first, int last) {
        turns(k, first, last, [](int i) { return i; }, [&](int turn, const Notes& noted) {
            wait();
            if (turn == 0) task.begin(k, slot(0));
            const auto origins = task.origins(k);   // each time: registers are few
            each_vector(turn, [&](int u) { task.add(slot(u), origins, noted[u]); });
            if (LetGo) copy();
            on();
        });
    }
    BNFOLD_DEVICE void write(int k) {
        const auto channels = task.channels();
#pragma unroll 1
        for (int turn = order.passing; turn < order.most; ++turn) {
            auto places = track.ahead(part, k, turn * U);
            typename Track<V, L>::Place to[U];
            places.take(to);
            each_vector(turn, [&](int u) { task.write(slot(u), to[u], channels, {}); });
            copy();
            on();
        }
        const auto again = [&](int i) { return order.again(i); };
        turns(k, 0, order.passing, again, [&](int turn, const Notes& noted) {
            wait();
            auto places = track.ahead(part, k, turn * U);
            typename Track<V, L>::Place to[U];
            places.take(to);
#pragma unroll
            for (int u = 0; u < U; ++u) task.write_again(slot(u), to[u], channels, noted[u]);   // it has no gaps
            copy();
            on();
        });
    }
    template <class Each>
    BNFOLD_DEVICE void each_vector(int turn, Each each) const {
        if (vectors(turn) == U) {
#pragma unroll
            for (int u = 0; u < U; ++u) each(u);
        } else {
#pragma unroll
            for (int u = 0; u < U - 1; ++u) {
                if (u < vectors(turn)) each(u);
            }
        }
    }

    // Asks L2 for the turns of a unit that are copied again first: a thread for two vectors, 32 bytes.
    BNFOLD_DEVICE void ask(int k) const {
        if (port::thread() % 2 != 0) return;
        auto places = track.ahead(part, k, 0);
#pragma unroll 1
        for (int i = 0; i < order.asked * U; ++i) {
            typename Track<V, L>::Place from[1];
            places.take(from);
#pragma unroll
            for (int s = 0; s < Task::tensors; ++s) port::prefetch(task.source(s, from[0]));
        }
    }

    BNFOLD_DEVICE void pass() {
#pragma unroll 1
        for (int i = 0; i < size; ++i) {
            copy();
            on();
        }
        task.prepare();
#pragma unroll 1
        for (int k = 0; k < task.team.units; ++k) {
            sum<true>(k, 0, order.passing);
            const int stay = at;
            if (task.writes()) ask(k);
            sum<false>(k, order.passing, order.most);
            task.tell(k, mine);
            task.hear(k);
            at = stay;
            if (task.writes()) write(k);
            task.leave(k);
            task.prepare(k + 2);  // the next unit's barriers come before anybody asks for it
        }
    }
};

}  // namespace bnfold
