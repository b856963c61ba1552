/* Reservations: duplicates are stopped while the first call is still queued (idempotency_on_enqueue).
 *
 * Three callers make the same call: each reserves the key, publishes its message and confirms that, or
 * attaches to an earlier call, whose outcome it then waits for. A caller may die between any two steps,
 * its message may be refused by the broker, and what is reserved lapses at some time. Two workers take
 * the messages. What every key has besides is in claim.pml.
 *
 * A name that begins with NO_ takes a guard out, one that begins with WRONG_ puts a fault in: run.sh shows
 * that the search finds each of them.
 */

#ifndef DEATHS         /* a caller dies */
#define DEATHS 0
#endif
#ifndef REFUSALS       /* the broker refuses a message */
#define REFUSALS 0
#endif
#ifndef CRASHES        /* a worker's process dies */
#define CRASHES 0
#endif
#ifndef COPIES         /* a message is redelivered though its worker is alive */
#define COPIES 0
#endif

#define CALLS 3
#define NOBODY 0

mtype = { free, running, succeeded };
mtype = { claimed, busy, replay };

/* --- the store: the record, and the reservation beside it --- */
mtype state = free;
byte owner = NOBODY, token = 0;
bool live = false;
byte queued = NOBODY;
bool confirmed = false;

/* --- the broker, and what each worker knows --- */
chan queue = [CALLS + CRASHES + COPIES] of { byte };
byte copies_of[CALLS + 1];
byte tokens[3], at_work[3];

/* --- what was seen --- */
bool published[CALLS + 1], over[CALLS + 1], answered[CALLS + 1];
byte attached[CALLS + 1];
byte deaths = 0, refusals = 0, crashes = 0, copies = 0;
byte i_;

#define END_OF_RESERVATION queued = NOBODY; confirmed = false

inline publish(c) {
    queue!c; copies_of[c]++
}

/* --- a caller -------------------------------------------------------------------------------- */

#define DIE atomic { deaths < DEATHS -> deaths++; goto out }

#ifdef NO_CONFIRMATION
#define STOPS (queued != NOBODY)
#else
#define STOPS (queued != NOBODY && confirmed)
#endif
#ifdef NO_OWNER_CHECK
#define ITS_OWN true
#else
#define ITS_OWN (queued == me)
#endif

proctype Caller(byte me) {
    if
    :: atomic { (state == running && live) || state == succeeded ->
        attached[me] = owner; goto out }
    :: atomic { !((state == running && live) || state == succeeded) && STOPS ->
        /* Nobody waits for what is queued no more. */
        assert(!answered[queued]);
        attached[me] = queued; goto out }
    :: atomic { !((state == running && live) || state == succeeded) && !STOPS ->
        queued = me; confirmed = false }
    :: DIE
    fi;
#ifdef WRONG_ORDER
    atomic { if
    :: ITS_OWN && queued != NOBODY -> confirmed = true
    :: else -> skip
    fi };
#endif
    if
    :: atomic { publish(me); published[me] = true }
    :: atomic { refusals < REFUSALS -> refusals++; goto undo }
    :: DIE
    fi;
    if
    :: atomic { ITS_OWN && queued != NOBODY -> confirmed = true }
    :: atomic { !(ITS_OWN && queued != NOBODY) -> skip }
    :: DIE
    fi;
    goto out;

undo:
    if
    :: atomic { ITS_OWN -> END_OF_RESERVATION }
    :: atomic { !ITS_OWN -> skip }
    :: DIE
    fi;

out:
    over[me] = true
}

/* --- a worker -------------------------------------------------------------------------------- */

inline claim() {
#ifndef NO_DROP
    /* A granted claim ends the reservation, and so does each delivery of the call that is reserved. */
    if
    :: queued == who || state == free || (state == running && !live) -> END_OF_RESERVATION
    :: else -> skip
    fi;
#endif
    if
    :: state == free || (state == running && !live) ->
        state = running; owner = who; live = true; token++; tokens[me] = token; verdict = claimed
    :: state == running && live -> verdict = busy
    :: state == succeeded -> verdict = replay
    fi
}

inline rest() {
    tokens[me] = 0; at_work[me] = NOBODY; who = NOBODY; verdict = 0
}

#define CRASH atomic { crashes < CRASHES -> crashes++; publish(who); rest(); goto end_idle }

proctype Worker(byte me) {
    byte who;
    mtype verdict;
end_idle:
    atomic { queue?who; copies_of[who]--; at_work[me] = who };
    if
    :: atomic { answered[who] -> rest(); goto end_idle }       /* its slip answers a copy */
    :: atomic { !answered[who] -> claim();
        if
        :: verdict == busy -> publish(who); rest(); goto end_idle
        :: verdict == replay -> answered[who] = true; rest(); goto end_idle
        :: else -> skip
        fi }
    :: CRASH
    fi;
    if
    :: CRASH
    :: atomic {
        if
        :: tokens[me] != token -> publish(who)                 /* it has lost its key */
        :: else ->
            answered[who] = true; live = false;
            if
            :: state = succeeded
            :: state = free; owner = NOBODY                    /* a failure frees the key */
            fi
        fi;
        rest() }
    fi;
    goto end_idle
}

#define BEATS (token == tokens[1] || token == tokens[2])
#define COPY(c) :: atomic { copies < COPIES && (at_work[1] == c || at_work[2] == c) && copies_of[c] == 0 -> \
    copies++; publish(c) }

proctype World() {
end_world:
    do
    :: atomic { queued != NOBODY -> END_OF_RESERVATION }       /* its time is over */
    :: atomic { state == running && live && !BEATS -> live = false }
    :: atomic { state == succeeded -> state = free; owner = NOBODY }    /* the end of the window */
    COPY(1) COPY(2) COPY(3)
    od
}

init {
    atomic {
        run Caller(1); run Caller(2); run Caller(3); run Worker(1); run Worker(2); run World()
    };
end_watch:
    timeout ->
        i_ = 1;
        do
        :: i_ > CALLS -> break
        :: else ->
            /* What was published is answered, and nobody waits for what was not. */
            assert(!published[i_] || answered[i_]);
            assert(attached[i_] == NOBODY || published[attached[i_]]);
            i_++
        od
}

ltl everybody_answered { <> (over[1] && over[2] && over[3] && (!published[1] || answered[1])
    && (!published[2] || answered[2]) && (!published[3] || answered[3])) }
