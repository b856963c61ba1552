/* The turns of calls whose key has no window (idempotency_ttl = 0): who runs, and who gets whose outcome.
 *
 * Three calls ask for one key. A run's end frees it: the record is then "done", released with its outcome.
 * MODE is what idempotency_after_wait says: ANSWER, RUN or LAST. claim() is core/transitions.py's for these
 * keys, in its order; what every key has besides (tokens on the wire, notes, callbacks) is in claim.pml.
 *
 * Each fault happens as often as the bounds below say, at any moment; run.sh sets them. A name that begins
 * with NO_ takes a guard out, one that begins with WRONG_ puts a fault in: the search has to find it.
 */

#define ANSWER 1       /* who had to wait gets the outcome of the run that it waited for */
#define RUN 2          /* each call runs, in its turn */
#define LAST 3         /* of those that wait the newest runs, and the others get its outcome */
#ifndef MODE
#define MODE ANSWER
#endif
#ifndef CRASHES        /* a process dies */
#define CRASHES 0
#endif
#ifndef COPIES         /* a message is redelivered though its worker is alive */
#define COPIES 0
#endif
#ifndef STALLS         /* a live worker's lease ends: it was stopped, or cut off */
#define STALLS 0
#endif
#ifndef LOSSES         /* a message that waits is lost */
#define LOSSES 0
#endif
#ifndef INTERRUPTIONS  /* more make the outcome unknown */
#define INTERRUPTIONS 1
#endif

#define IN_TURN (MODE != ANSWER)
#define CALLS 3
#define EVERYBODY 14   /* calls as bits */
#define NOBODY 0
#define UNKNOWN 31     /* the answer of who is told that nobody knows; else it is the run's token */

mtype = { free, running, done, unknown };
mtype = { claimed, busy, replay, nobody_knows };

/* --- the record --- */
mtype state = free;
byte token = 0, owner = NOBODY, count = 0, came_of_run = 0;
bool live = false;

/* --- beside it: each call's slip and place, and the reservation of who runs next --- */
byte slip[CALLS + 1];
byte came[CALLS + 1];
byte next = NOBODY, place = 0;
bool due = false;      /* those before it let it go first now */

/* --- the broker: how often each message is in its queue, and whose run it has found --- */
chan queue = [CALLS + CRASHES + COPIES] of { byte };
byte queued[CALLS + 1];
byte awaits[CALLS + 1];

/* --- what each worker knows --- */
byte tokens[3];
bool trusts[3];        /* its body runs, and its lease, to its knowledge, goes on */
byte at_work[3];       /* whose message it has */

/* --- what was seen --- */
byte order = 0;        /* how many calls have come */
byte first[CALLS + 1]; /* as which one each of them came first */
byte answered = 0, lost_ones = 0, sent = 0, ran = 0;
byte answer[CALLS + 1];
byte first_of[UNKNOWN + 1];    /* of which call each run was */
byte cut[CALLS + 1];   /* how many runs of the call were cut off */
byte crashes = 0, copies = 0, stalls = 0, losses = 0;
byte i_;

#define BIT(c) (1 << (c))
#define MINE (state != free && owner == who)
#define GONE(c) (queued[c] == 0 && at_work[1] != c && at_work[2] != c)

inline publish(c) {
    queued[c]++; queue!c
}

inline begin_body(counted) {
    assert(!(me != 1 && trusts[1]) && !(me != 2 && trusts[2]));
    assert(answer[who] == 0);
    /* Who waited for a run that has an outcome gets that. */
    assert(MINE || awaits[who] == NOBODY || slip[awaits[who]] == 0);
    /* The newest of those that wait comes before the others. */
    if
    :: MODE == LAST && !MINE && crashes + stalls + losses == 0 ->
        i_ = 1;
        do
        :: i_ > CALLS -> break
        :: else ->
            assert(first[i_] <= first[who] || slip[i_] != 0 || (ran & BIT(i_)));
            i_++
        od;
        i_ = 0
    :: else -> skip
    fi;
    count = counted;
    came_of_run = came[who];
    ran = ran | BIT(who);
    state = running; owner = who; live = true; token++;
    first_of[token] = first[who];
    tokens[me] = token; trusts[me] = true; verdict = claimed
}

inline become_unknown() {
    /* Calls that run in their turns don't pay for one another. */
    assert(!IN_TURN || cut[owner] > INTERRUPTIONS);
    state = unknown; live = false; verdict = nobody_knows
}

inline interrupted() {
    cut[owner]++;
#ifdef WRONG_COUNT_OF_OTHERS
    if
    :: count + 1 > INTERRUPTIONS -> become_unknown()
    :: else -> begin_body(count + 1)
    fi
#else
    if
    :: IN_TURN && !MINE && INTERRUPTIONS == 0 -> become_unknown()
    :: IN_TURN && !MINE && INTERRUPTIONS > 0 -> begin_body(0)
    :: !(IN_TURN && !MINE) && count + 1 > INTERRUPTIONS -> become_unknown()
    :: !(IN_TURN && !MINE) && count + 1 <= INTERRUPTIONS -> begin_body(count + 1)
    fi
#endif
}

/* Whether who asks gets the outcome of the run that has left one in the record. */
#ifdef WRONG_SHARE_WITH_ALL
#define SHARES true
#else
#ifdef NO_SHARE
#define SHARES false
#else
#define SHARES ((MODE == ANSWER && awaits[who] == owner) || (MODE == LAST && came[who] <= came_of_run))
#endif
#endif
#ifdef NO_SHARE
#define SHARES_OF_SLIP false
#else
/* ... or of that run's slip, where another call has the key since. */
#define SHARES_OF_SLIP (awaits[who] != NOBODY && !MINE && slip[awaits[who]] != 0)
#endif

inline share(told) {
    /* Nobody gets the outcome of a run that he did not wait for, nor of one that began before he came. */
    assert(MODE != ANSWER || awaits[who] != NOBODY);
    assert(MODE != LAST || told == UNKNOWN || first_of[told] > first[who]);
    slip[who] = told; verdict = (told == UNKNOWN -> nobody_knows : replay)
}

/* The newest of those that wait has the free key first. If it doesn't come its message was lost. */
#ifdef NO_LAPSE
#define LAPSED false
#else
#define LAPSED (due && GONE(next))
#endif
#ifdef NO_FIRST
#define GOES_LATER false
#else
#define GOES_LATER (MODE == LAST && !MINE && next != NOBODY && next != who && came[who] <= place && !LAPSED)
#endif
#ifdef NO_LEASE_CHECK
#define LEASED false
#else
#define LEASED live
#endif

inline take(counted) {
    if
    :: GOES_LATER -> due = true; verdict = busy
    :: else ->
        if
        :: next == who || !MINE -> next = NOBODY; place = 0; due = false
        :: else -> skip
        fi;
        begin_body(counted)
    fi
}

/* In its turn only who is displaced by a later call waits for an outcome. */
inline look_at_run() {
    if
    :: MODE == ANSWER && !MINE -> awaits[who] = owner
    :: MODE == LAST && !MINE -> awaits[who] = (came[who] <= came_of_run -> owner : NOBODY)
    :: else -> skip
    fi
}

inline wait_in_line() {
    /* Of those that wait the newest has the place. */
    if
    :: MODE == LAST && !MINE && state == running && came[who] > came_of_run && came[who] > place ->
        next = who; place = came[who]; due = false
    :: MODE == LAST && next == who && !(came[who] > came_of_run) ->
        next = NOBODY; place = 0; due = false
    :: else -> skip
    fi;
    look_at_run();
    verdict = busy
}

inline claim() {
    if
    :: first[who] == 0 -> order++; first[who] = order; came[who] = order
    :: else ->
#ifdef NO_PLACE
        came[who] = CALLS + 1
#else
        skip
#endif
    fi;
    if
    :: slip[who] == UNKNOWN -> verdict = nobody_knows
    :: slip[who] != 0 && slip[who] != UNKNOWN -> verdict = replay
    :: slip[who] == 0 && SHARES_OF_SLIP -> share(slip[awaits[who]])
    :: slip[who] == 0 && !SHARES_OF_SLIP ->
        if
        :: state == free -> take(0)
        :: state == running && LEASED -> wait_in_line()
        :: state == running && !LEASED && GOES_LATER -> due = true; verdict = busy
        :: state == running && !LEASED && !GOES_LATER ->
            if
            :: next == who || !MINE -> next = NOBODY; place = 0; due = false
            :: else -> skip
            fi;
            interrupted()
        :: state == done && !MINE && SHARES -> share(slip[owner])
        :: state == done && !MINE && !SHARES -> take(0)
        :: state == done && MINE -> verdict = replay
        :: state == unknown -> verdict = nobody_knows
        fi
    fi;
    if
    :: verdict != busy && verdict != claimed && next == who -> next = NOBODY; place = 0; due = false
    :: else -> skip
    fi
}

inline settle() {
    if
    :: (state == running || state == unknown) && token == tokens[me] ->
        if
        :: slip[who] == 0 -> slip[who] = token
        :: else -> skip                              /* its copy has told that nobody knows */
        fi;
        state = done; live = false; verdict = replay
    :: else ->
        /* It has lost its key. */
        if
        :: slip[who] != 0 || owner == who -> verdict = busy
        :: slip[who] == 0 && owner != who && IN_TURN ->
            slip[who] = tokens[me]; verdict = replay              /* its own outcome, unrecorded */
        :: slip[who] == 0 && owner != who && !IN_TURN && state == done ->
            slip[who] = slip[owner]; verdict = replay
        :: slip[who] == 0 && owner != who && !IN_TURN && state != done ->
            look_at_run(); verdict = busy
        fi
    fi
}

inline rest() {
    tokens[me] = 0; trusts[me] = false; at_work[me] = NOBODY; who = NOBODY; verdict = 0
}

#define DIE atomic { crashes < CRASHES -> crashes++; publish(who); rest(); goto end_idle }

proctype Worker(byte me) {
    byte who;
    mtype verdict;
end_idle:
    atomic { queue?who; queued[who]--; at_work[me] = who };
    if
    :: atomic { claim();
        if
        :: verdict == nobody_knows -> slip[who] = UNKNOWN
        :: else -> skip
        fi }
    :: DIE
    fi;
    if
    :: atomic { verdict == busy -> goto put_back }
    :: atomic { verdict == replay || verdict == nobody_knows -> goto tell }
    :: verdict == claimed -> goto body
    fi;

body:
    if
    :: DIE
    :: atomic { tokens[me] == token && state == running && !live -> live = true; trusts[me] = true; goto body }
    :: atomic { trusts[me] = false; settle();
        if
        :: verdict == busy -> goto put_back
        :: else -> goto tell
        fi }
    fi;

put_back:
    if
    :: atomic { losses < LOSSES && !(answered & BIT(who)) && queued[who] == 0 ->
        losses++; lost_ones = lost_ones | BIT(who); rest(); goto end_idle }
    :: atomic { publish(who); rest(); goto end_idle }
    fi;

tell:
    if
    :: DIE
    :: atomic {
        /* An answer never changes. In its turn each call has run. */
        assert(answer[who] == 0 || answer[who] == slip[who]);
        assert(MODE != RUN || slip[who] == UNKNOWN || (ran & BIT(who)));
        answer[who] = slip[who]; answered = answered | BIT(who); rest(); goto end_idle }
    fi
}

#define BEATS (token == tokens[1] || token == tokens[2])

#define SEND(c) :: atomic { !(sent & BIT(c)) -> sent = sent | BIT(c); publish(c) }
#define COPY(c) :: atomic { copies < COPIES && (at_work[1] == c || at_work[2] == c) && queued[c] == 0 -> \
    copies++; publish(c) }

proctype World() {
end_world:
    do
    SEND(1) SEND(2) SEND(3)
    COPY(1) COPY(2) COPY(3)
    :: atomic { state == running && live && !BEATS -> live = false }
    :: atomic { state == running && live && BEATS && stalls < STALLS ->
        stalls++; live = false; trusts[1] = false; trusts[2] = false }
    od
}

init {
    atomic { run Worker(1); run Worker(2); run World() };
end_watch:
    timeout ->
        assert((answered | lost_ones) == EVERYBODY);
        /* The newest of all has run: no change is lost. */
        i_ = 1;
        do
        :: i_ > CALLS -> break
        :: else ->
            assert(MODE != LAST || first[i_] != order || (ran & BIT(i_)) || (lost_ones & BIT(i_))
                || answer[i_] == UNKNOWN);
            i_++
        od
}

ltl everybody_answered { <> ((answered | lost_ones) == EVERYBODY) }
