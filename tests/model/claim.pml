/* The claim protocol of one key, with the deliveries, the broker and the faults around it.
 *
 * Two task ids ask for the key: ORIGINAL, whose message may be redelivered while it runs, and
 * DUPLICATE, which is sent at some time. WORKERS processes take their messages. Every operation of
 * the store is one atomic step; between any two steps anybody may come in. The order of the tests
 * in claim() and settle() is that of the contract's table and of core/transitions.py.
 *
 * Each fault happens as often as the bounds below say, at any moment; run.sh sets them. A name that
 * begins with NO_ takes a guard out: run.sh shows that the search finds each of those faults.
 *
 * Tokens are numbers without end in the store. All that matters of them is their order and which
 * differ by one, so settle_numbers() closes wider gaps: with that, there are finitely many states.
 */

#ifndef CRASHES        /* a process dies */
#define CRASHES 0
#endif
#ifndef COPIES         /* a message is redelivered though its worker is alive */
#define COPIES 0
#endif
#ifndef STALLS         /* a live worker's lease ends: it was stopped, or cut off */
#define STALLS 0
#endif
#ifndef ANSWERS        /* the store acts, and its answer is lost */
#define ANSWERS 0
#endif
#ifndef DELAYS         /* a claim is given up, and arrives late */
#define DELAYS 0
#endif
#ifndef OUTAGES        /* the store is away at a completion, which is recorded later, or never */
#define OUTAGES 0
#endif
#ifndef LOSSES         /* a published message is lost, or a claim's undoing */
#define LOSSES 0
#endif
#ifndef EMPTIED        /* the store comes back empty */
#define EMPTIED 0
#endif
#ifndef FORGETS        /* an operator frees the key */
#define FORGETS 0
#endif
#ifndef RETRIES        /* runs ask to be retried this often */
#define RETRIES 0
#endif
#ifndef INTERRUPTIONS  /* more make the outcome unknown */
#define INTERRUPTIONS 1
#endif

#define WORKERS 2
#define TAGS 6         /* delivery tags of the broker */
#define NOBODY 0
#define ORIGINAL 1
#define DUPLICATE 2
#define EVERYBODY 3

mtype = { absent, running, retrying, released, failed, succeeded, unknown };
mtype = { claimed, busy, replay, superseded, nobody_knows, recorded, lost };

/* --- the record, as the store has it --- */
mtype state = absent;
byte token = 0, owner = NOBODY, retries = 0, interruptions = 0, nonce = 0, process = 0;
bool live = false;         /* the lease has not ended; the retry is not due for a lease */

/* --- what each worker knows: its token, its claim under way --- */
byte tokens[WORKERS + 1];
byte nonces[WORKERS + 1];
bool trusts[WORKERS + 1];  /* its body runs, and its lease, to its knowledge, goes on */

/* --- on the wire to the store: one late claim, its undoing, one late completion --- */
byte late_nonce = 0, late_who = NOBODY, late_retries = 0, late_process = 0;
byte undo_nonce = 0, undo_who = NOBODY, undo_retries = 0;
byte owed_token = 0, owed_who = NOBODY, owed_by = 0;

/* --- the broker: Redis's, where a redelivered copy keeps its tag, and one ack is for both --- */
chan queue = [TAGS] of { byte };
byte whose[TAGS], attempt[TAGS], held[TAGS];
bool queued[TAGS], unacked[TAGS], orphan[TAGS];

/* --- what was seen --- */
byte highest = 0;          /* token that was ever given */
byte accepted = 0;         /* runs whose completion was accepted, since the key was last freed */
byte accepted_token = 0;   /* the last of them */
byte answered = 0;         /* task ids with an answer, as bits */
byte excused = 0;          /* task ids whose message the broker lost */
byte sent_on[3];           /* the attempt that the owner's retry was recorded for */
bool sent = false;         /* DUPLICATE's message is out */
byte crashes = 0, copies = 0, stalls = 0, answers = 0, delays = 0, outages = 0, losses = 0;
byte emptied = 0, forgets = 0;

byte v_, free_;            /* for the inlines, inside one step */

/* --- numbers ------------------------------------------------------------------------------- */

#define LIVE_NUMBER(v) (token == v || highest == v || owed_token == v || tokens[1] == v \
    || tokens[2] == v || accepted_token == v)
#define CLOSE(x) if :: x > v_ -> x-- :: else -> skip fi

inline settle_numbers() {
    v_ = 1;
    do
    :: v_ >= highest -> break
    :: else ->
        if
        :: LIVE_NUMBER(v_) || LIVE_NUMBER((v_ - 1)) -> v_++
        :: else ->
            CLOSE(token); CLOSE(highest); CLOSE(owed_token); CLOSE(tokens[1]); CLOSE(tokens[2]);
            CLOSE(accepted_token)
        fi
    od;
    v_ = 0
}

#define RISE(x, to) if :: x < to -> x = to :: else -> skip fi

inline new_token() {
    /* max(previous + 1, the store's clock): the clock may have gone back, where a record is left.
     * Where a store came back empty, only the clock is left. */
    if
    :: emptied > 0 || highest == 0 -> token = highest + 1
    :: emptied == 0 && highest > 0 && state == absent -> token = highest
    :: emptied == 0 && highest > 0 && state != absent -> token = token + 1
    fi;
    assert(token > highest);
    highest = token
}

#define USED(n) (nonce == n || nonces[1] == n || nonces[2] == n || late_nonce == n \
    || undo_nonce == n)

inline new_nonce(w) {
    free_ = 1;
    do
    :: USED(free_) -> free_++
    :: else -> break
    od;
    nonces[w] = free_;
    free_ = 0
}

/* --- the broker ------------------------------------------------------------------------------ */

inline forget_tag(it) {
    if
    :: !queued[it] && !unacked[it] && held[it] == 0 -> whose[it] = 0; attempt[it] = 0
    :: else -> skip
    fi
}

inline publish(who, r) {
    free_ = 0;
    do
    :: whose[free_] != 0 -> free_++; assert(free_ < TAGS)
    :: else -> break
    od;
    whose[free_] = who; attempt[free_] = r; queued[free_] = true;
    queue!free_;
    free_ = 0
}

inline ack(it) {
    unacked[it] = false; orphan[it] = false; held[it]--;
    forget_tag(it); it = 0
}

#define RESTORE(it) \
    :: atomic { unacked[it] && !queued[it] && (held[it] == 0 || orphan[it]) -> restore(it) } \
    :: atomic { unacked[it] && !queued[it] && held[it] > 0 && copies < COPIES -> \
        copies++; restore(it) }

inline restore(it) {
    unacked[it] = false; orphan[it] = false; queued[it] = true; queue!it
}

/* --- the store ------------------------------------------------------------------------------- */

#define MINE (owner == who)

inline begin(who, r, w, counted, n) {
    /* No body begins while another's lease goes on, nor an attempt before the one recorded. */
    assert(!(w != 1 && trusts[1]) && !(w != 2 && trusts[2]));
    if
    :: owner != who -> sent_on[1] = 0; sent_on[2] = 0
    :: else -> assert(r >= sent_on[who])
    fi;
    new_token();
    state = running; owner = who; retries = r; nonce = n; process = w; live = true;
    interruptions = counted; verdict = claimed
}

inline interrupt(who, r, w, n) {
    if
    :: interruptions < INTERRUPTIONS -> begin(who, r, w, interruptions + 1, n)
    :: else ->
        state = unknown; live = false; nonce = 0; verdict = nobody_knows
    fi
}

#ifdef NO_RETRIES_CHECK
#define OLD_COPY false
#else
#define OLD_COPY (MINE && r < retries)
#endif
#ifdef NO_LEASE_CHECK
#define LEASED false
#else
#define LEASED live
#endif
#ifdef NO_OVERDUE
#define OVERDUE false
#else
#define OVERDUE (!live)
#endif

inline claim(who, r, w, n) {
    if
    :: state == absent -> begin(who, r, w, 0, n)
    :: state != absent && nonce == n ->
        
        if
        :: state == running -> verdict = claimed
        :: else -> verdict = busy
        fi
    :: state == released && nonce != n ->
        if
        :: MINE && nonce != 0 && r < retries -> verdict = superseded
        :: !(MINE && r < retries) && nonce != 0 -> begin(who, r, w, interruptions, n)
        :: !(MINE && r < retries) && nonce == 0 -> begin(who, r, w, 0, n)
        :: MINE && r < retries && nonce == 0 -> begin(who, r, w, 0, n)
        fi
    :: state == running && nonce != n ->
        if
        :: OLD_COPY -> verdict = superseded
        :: !OLD_COPY && LEASED -> verdict = busy
        :: !OLD_COPY && !LEASED && MINE && r > retries -> begin(who, r, w, 0, n)
        :: !OLD_COPY && !LEASED && !(MINE && r > retries) -> interrupt(who, r, w, n)
        fi
    :: state == retrying && nonce != n ->
        if
        :: OLD_COPY -> verdict = superseded
        :: !OLD_COPY && (MINE || OVERDUE) -> begin(who, r, w, 0, n)
        :: !OLD_COPY && !MINE && !OVERDUE -> verdict = busy
        fi
    :: state == failed && nonce != n ->
        if
        :: MINE -> verdict = replay
        :: else -> begin(who, r, w, 0, n)
        fi
    :: state == succeeded && nonce != n -> verdict = replay
    :: state == unknown && nonce != n -> verdict = nobody_knows
    fi;
    settle_numbers()
}

#ifdef NO_TOKEN_CHECK
#define HOLDS(t) true
#else
#define HOLDS(t) (token == t)
#endif
#define RELEASES(new) ((new == released) || (new == failed))

inline settle(who, t, new, r) {
    if
    :: (state != absent && state == new && owner == who && token == t + RELEASES(new)) ->
        verdict = recorded  /* asked again */
    :: else ->
        if
        :: state != absent && !HOLDS(t) -> verdict = lost
        :: state == succeeded && HOLDS(t) -> verdict = recorded
        :: else ->
            if
            :: state == absent -> interruptions = 0
            :: else -> assert(t >= token)
            fi;
            token = t;
            state = new; owner = who; retries = r; nonce = 0; process = 0;
            live = (new == retrying);
            if
            :: RELEASES(new) ->
                token = t + 1;
                RISE(highest, token)
            :: new == retrying -> sent_on[who] = r
            :: else -> skip
            fi;
#ifdef RELEASE_DELETES
            if
            :: RELEASES(new) ->
                state = absent; token = 0; owner = NOBODY; retries = 0; interruptions = 0
            :: else -> skip
            fi;
#endif
            verdict = recorded
        fi
    fi;
    if
    :: new == succeeded && verdict == recorded && accepted_token != t ->
        accepted_token = t; accepted++; assert(accepted <= 1)
    :: else -> skip
    fi;
    settle_numbers()
}

inline abandon(who, r, n) {
    if
    :: state == absent ->
        new_token();
        state = released; owner = who; retries = r; nonce = n; interruptions = 0
    :: state == running && nonce == n ->
        state = released; token++; live = false; process = 0;
        RISE(highest, token)
    :: state != absent && state != running && nonce != n ->
        if
        :: nonce == 0 && state == released -> interruptions = 0
        :: else -> skip
        fi;
        nonce = n
    :: else -> skip
    fi;
    settle_numbers()
}

inline end_lease(who, w) {
#ifdef NO_PROCESS_CHECK
    if
    :: state == running && MINE && live -> live = false; nonce = 0
#else
    if
    :: state == running && MINE && process == w && live -> live = false; nonce = 0
#endif
    :: else -> skip
    fi
}

/* --- a worker -------------------------------------------------------------------------------- */

#define DIE atomic { crashes < CRASHES -> crashes++; goto dead }

inline rest() {
    tokens[me] = 0; nonces[me] = 0; trusts[me] = false;
    who = 0; r = 0; coming = 0; verdict = 0; wanted = 0;
    settle_numbers()
}

inline die() {
    if
    :: true                              /* all of the worker dies: its lease ends by itself */
    :: tag != TAGS -> end_lease(who, me) /* its parent lives, and ends what the child held */
    fi;
    held[tag]--; orphan[tag] = unacked[tag]; forget_tag(tag); tag = 0;
    /* what it was still to tell the store dies with it */
    if
    :: owed_by == me -> owed_token = 0; owed_who = NOBODY; owed_by = 0
    :: else -> skip
    fi;
    rest()
}

inline judge() {
    /* A refused run gets what holds: by the record that came with the refusal. */
    if
    :: verdict == lost && owner != who ->
        if
        :: state == released || state == succeeded || state == failed -> verdict = replay
        :: else -> verdict = busy
        fi
    :: else -> skip
    fi
}

inline answer() { answered = answered | who }

proctype Worker(byte me) {
    byte who, r, tag, coming;        /* coming: the attempt that the record is to name */
    mtype verdict, wanted;
end_idle:
    atomic {
        queue?tag;
        queued[tag] = false; unacked[tag] = true; held[tag]++;
        who = whose[tag]; r = attempt[tag]; new_nonce(me)
    };
ask:
    if
    :: atomic { claim(who, r, me, nonces[me]);
        if
        :: true ->
            if
            :: verdict == claimed -> tokens[me] = token; trusts[me] = live
            :: else -> skip
            fi;
            nonces[me] = 0
        :: answers < ANSWERS ->
            answers++; verdict = 0;
            if
            :: true -> goto ask              /* with the same nonce */
            :: undo_nonce == 0 -> goto give_up
            fi
        fi }
    :: atomic { delays < DELAYS && late_nonce == 0 && undo_nonce == 0 -> delays++;
        late_nonce = nonces[me]; late_who = who; late_retries = r; late_process = me;
        goto give_up }
    :: DIE
    fi;
    if
    :: verdict == claimed -> goto body
    :: verdict == busy -> goto put_back
    :: verdict == replay || verdict == nobody_knows -> goto tell
    :: verdict == superseded -> goto done
    fi;

give_up:
    atomic { undo_nonce = nonces[me]; undo_who = who; undo_retries = r; nonces[me] = 0;
        goto put_back };

body:
    if
    :: DIE
    :: atomic { tokens[me] == token && state == running && !live ->
        live = true; trusts[me] = true; goto body }      /* its heartbeat: nobody took over */
    :: atomic { state == absent && emptied > 0 -> state = running; owner = who; retries = r;
        token = tokens[me]; process = me; live = true; trusts[me] = true; goto body }
    :: atomic { wanted = succeeded; coming = r; trusts[me] = false } -> goto end_of_body
    :: atomic { wanted = failed; coming = r; trusts[me] = false } -> goto end_of_body
    :: atomic { r < RETRIES -> wanted = retrying; coming = r + 1; trusts[me] = false;
        if
        :: losses < LOSSES -> losses++; excused = excused | who
        :: publish(who, r + 1)           /* Celery publishes first, then we record it */
        fi } -> goto end_of_body
    fi;

end_of_body:
    if
    :: atomic { settle(who, tokens[me], wanted, coming);
        if
        :: judge()
        :: answers < ANSWERS -> answers++; verdict = 0; goto end_of_body
        fi }
    :: atomic { wanted == succeeded && outages < OUTAGES && owed_token == 0 -> outages++;
        owed_token = tokens[me]; owed_who = who; owed_by = me; verdict = recorded }
    :: DIE
    fi;
    if
    :: wanted == retrying -> goto done   /* its successor is out */
    :: wanted != retrying && (verdict == recorded || verdict == replay) -> goto tell
    :: wanted != retrying && verdict == busy -> goto put_back
    :: wanted != retrying && verdict == lost -> goto leave
    fi;

leave:
#ifdef NO_RETURN_OF_A_ZOMBIE
    goto done;
#endif
    goto put_back;

put_back:
#ifndef NO_REPUBLISH
    if
    :: atomic { publish(who, r) }
    :: DIE
    fi;
#endif
    goto done;

tell:
    if
    :: atomic { answer() }
    :: DIE
    fi;

done:
    if
    :: atomic { ack(tag); rest() }
    :: DIE
    fi;
    goto end_idle;

dead:
    atomic { die() };
    goto end_idle
}

/* --- time, the broker, the wire, people ------------------------------------------------------ */

inline begin_anew() {
    accepted = 0; accepted_token = 0; trusts[1] = false; trusts[2] = false;
    sent_on[1] = 0; sent_on[2] = 0
}

#define BEATS (token == tokens[1] || token == tokens[2] || token == owed_token)

proctype World() {
    byte who, r;
    mtype verdict;
end_world:
    do
    :: atomic { !sent -> sent = true; publish(DUPLICATE, 0) }
    RESTORE(0) RESTORE(1) RESTORE(2) RESTORE(3) RESTORE(4) RESTORE(5)
#ifndef NO_EXPIRY
    :: atomic { state == running && live && !BEATS -> live = false }
#endif
    :: atomic { state == running && live && BEATS && stalls < STALLS ->
        stalls++; live = false; trusts[1] = false; trusts[2] = false }
    :: atomic { state == retrying && live -> live = false }
    :: atomic { late_nonce != 0 ->
        who = late_who; r = late_retries;
        claim(who, r, late_process, late_nonce);
        who = 0; r = 0; verdict = 0;
        late_nonce = 0; late_who = NOBODY; late_retries = 0; late_process = 0 }
    :: atomic { undo_nonce != 0 ->
        if
        :: abandon(undo_who, undo_retries, undo_nonce)
        :: losses < LOSSES -> losses++
        fi;
        undo_nonce = 0; undo_who = NOBODY; undo_retries = 0 }
    :: atomic { owed_token != 0 ->
        who = owed_who;
        settle(who, owed_token, succeeded, retries);
        who = 0; verdict = 0;
        owed_token = 0; owed_who = NOBODY; owed_by = 0; settle_numbers() }
    :: atomic { emptied < EMPTIED && state != absent -> emptied++;
        state = absent; token = 0; owner = NOBODY; retries = 0; interruptions = 0; nonce = 0;
        process = 0; live = false; begin_anew() }
    :: atomic { forgets < FORGETS && state != absent -> forgets++;
        state = released; new_token(); owner = NOBODY; retries = 0; interruptions = 0; nonce = 0;
        process = 0; live = false; begin_anew(); settle_numbers() }
    od
}

init {
    atomic {
        publish(ORIGINAL, 0);
        run Worker(1);
        run Worker(2);
        run World()
    };
end_watch:
    /* When nothing can happen any more, everybody has an answer. */
    timeout -> assert((answered | excused) == EVERYBODY)
}

ltl everybody_answered { <> ((answered | excused) == EVERYBODY) }
ltl no_lock_for_ever { [] (((state == running || state == retrying) && live)
    -> <> !((state == running || state == retrying) && live)) }
