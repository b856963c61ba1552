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
#ifndef IGNORES        /* runs end without an outcome: Ignore, Reject, replace */
#define IGNORES 0
#endif
#ifndef CUTS           /* something cuts a delivery off between the grant and its body */
#define CUTS 0
#endif
#ifndef CALLBACKS      /* the messages have callbacks: delivery leases, and a note */
#define CALLBACKS 0
#endif
#ifndef NOTES          /* the store refuses a note, which is told again */
#define NOTES 0
#endif
#ifndef GIVES          /* a body gives its key up before its end: release() */
#define GIVES 0
#endif
#ifndef SHARES         /* a duplicate may have waited for the run that failed: it shares that */
#define SHARES 0
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
#define RECORD 1       /* where who sends callbacks has its lease */
#define SLIP 2
#ifdef NO_SLIP_FOR_A_LOSER
#define LOST_VIA 0
#else
#define LOST_VIA SLIP
#endif

/* failed: released with its outcome, that is free for others: a failure, or any outcome where the window
 * is 0. ignored: an answer without outcome. */
/* kept: the result of a run that had given its key up: only its slip has it. */
mtype = { none, absent, running, retrying, released, failed, succeeded, unknown, ignored, kept };
mtype = { claimed, busy, replay, superseded, nobody_knows, recorded,
    answered_before, lost };

/* --- the record, as the store has it --- */
mtype state = absent;
byte token = 0, owner = NOBODY, retries = 0, interruptions = 0, nonce = 0, process = 0;
bool live = false;         /* the lease has not ended, of a run or of who sends its callbacks; the
                            * retry is not due for a lease */
byte given_up = 0;         /* nonces of claims that may still come, and get nothing, as bits */

/* --- the slips, one for each owner --- */
mtype slip[3] = none;      /* its answer */
byte slip_retries[3];      /* the attempt that was answered */
bool noted[3];             /* its callbacks went out */
byte sending[3];           /* the nonce of who sends them, under a lease */
byte gone[3];              /* the token of its run that has given the key up: while there is no
                            * answer, that run's lease is here, in the place of who sends */
byte cut[3];               /* how many runs were cut off before that one */

/* --- what each worker knows: its token, its claim under way --- */
byte tokens[WORKERS + 1];
byte nonces[WORKERS + 1];
bool trusts[WORKERS + 1];  /* its body runs, and its lease, to its knowledge, goes on */
byte alone[WORKERS + 1];   /* whose body runs without the key, under a lease in its slip */

/* --- on the wire to the store: late claims, their undoing, one late completion, one late note --- */
byte late_nonce[2], late_who[2], late_retries[2], late_process[2];
byte undo_nonce[2], undo_who[2], undo_retries[2];
byte owed_token = 0, owed_who = NOBODY, owed_by = 0;
byte note_token = 0, note_nonce = 0, note_who = NOBODY, note_retries = 0, note_by = 0;
mtype note_told = none;

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
mtype answer[3] = none;    /* the answer of each task id that the store has heard of */
byte out[3];               /* its callbacks: 1 out, 2 may go out again (a crash, a stall) */
bool idle = false;         /* the claim that holds the key is for a body that will not begin */
bool sent = false;         /* DUPLICATE's message is out */
byte crashes = 0, copies = 0, stalls = 0, answers = 0, delays = 0, outages = 0, losses = 0;
byte emptied = 0, forgets = 0, ignores = 0, cuts = 0, notes = 0, gives = 0;

byte v_, free_, via_, count_;
mtype told_ = none;        /* for the inlines, inside one step */

/* --- numbers ------------------------------------------------------------------------------- */

#define LIVE_NUMBER(v) (token == v || highest == v || owed_token == v || tokens[1] == v \
    || tokens[2] == v || accepted_token == v || note_token == v || gone[1] == v || gone[2] == v)
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
            CLOSE(accepted_token); CLOSE(note_token); CLOSE(gone[1]); CLOSE(gone[2])
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

#define LATE(n) (late_nonce[0] == n || late_nonce[1] == n)
#define FREE_SLOT(i) (late_nonce[i] == 0 && undo_nonce[i] == 0)
#define UNDOING(n) (undo_nonce[0] == n || undo_nonce[1] == n)
#define USED(n) (nonce == n || nonces[1] == n || nonces[2] == n || LATE(n) || UNDOING(n) \
    || sending[1] == n || sending[2] == n || note_nonce == n)

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
#define DONE (state == succeeded || state == failed)
#define FORGOTTEN (emptied > 0 || forgets > 0)
#define OUTCOME(a) (a == failed || a == unknown || a == kept)
#define IS_RUN(who) (gone[who] != 0 && slip[who] == none)

inline clear_slip(who) {
    slip[who] = none; slip_retries[who] = 0; noted[who] = false; sending[who] = 0;
    gone[who] = 0; cut[who] = 0
}

inline begin(who, r, w, counted, n) {
    count_ = counted;
#if GIVES
    /* The run that had given its key up was cut off after that. */
    if
    :: IS_RUN(who) && r <= slip_retries[who] -> count_ = cut[who] + 1
    :: else -> skip
    fi;
    if
    :: IS_RUN(who) && count_ > INTERRUPTIONS ->
        clear_slip(who);
        new_token();
        state = unknown; owner = who; retries = r; interruptions = 0; live = false; nonce = 0;
        process = w; verdict = nobody_knows; told_ = unknown; tell_alone(who, n)
    :: else -> begin_body(who, r, w, n)
    fi;
#else
    begin_body(who, r, w, n);
#endif
    count_ = 0
}

inline begin_body(who, r, w, n) {
    assert(!(w != 1 && alone[1] == who) && !(w != 2 && alone[2] == who));
    /* No body begins while another's lease goes on, nor an attempt before the one recorded. */
    assert(!(w != 1 && trusts[1]) && !(w != 2 && trusts[2]));
    if
    :: owner != who -> sent_on[1] = 0; sent_on[2] = 0
    :: else -> assert(r >= sent_on[who])
    fi;
    /* Nobody begins again who has its answer; a later attempt is a call of its own. */
    assert(answer[who] == none || r > slip_retries[who]);
    interruptions = count_;
    answer[who] = none; idle = false; clear_slip(who);
    new_token();
    state = running; owner = who; retries = r; nonce = n; process = w; live = true;
    verdict = claimed
}

inline lease(who, n) {
    /* What a verdict sends, it sends under a lease in the message's slip. */
    if
    :: noted[who] -> via_ = 0
#ifdef NO_SENDING
    :: !noted[who] -> via_ = SLIP
#else
    :: !noted[who] ->
        via_ = SLIP;
        if
        :: CALLBACKS -> sending[who] = n
        :: else -> skip
        fi
#endif
    fi
}

inline answer_again(who, n) {
    if
    :: slip[who] == ignored || slip[who] == succeeded -> verdict = superseded
    :: else -> verdict = replay; told_ = slip[who]; lease(who, n)
    fi
}

/* A run that gave its key up has lost its lease, and its call gets its answer here. */
#if GIVES && !defined(NO_END_OF_WHO_IS_ALONE)
#define END_ALONE(who) if :: IS_RUN(who) -> gone[who] = 0; cut[who] = 0 :: else -> skip fi
#else
#define END_ALONE(who) skip
#endif


inline tell_alone(who, n) {
    /* An error that the record does not keep: until it is noted, nobody else answers this call. */
    via_ = SLIP;
    END_ALONE(who);
#ifdef NO_LEASE_FOR_ERRORS
    if
    :: CALLBACKS && !noted[who] -> sending[who] = n
    :: else -> skip
    fi
#else
    if
    :: !noted[who] && (CALLBACKS || slip[who] == none || state == unknown) -> sending[who] = n
    :: else -> skip
    fi
#endif
}

inline share(who, r, n) {
    /* The failure of a run that this caller waited for: its slip has it from the claim on. */
    verdict = replay; told_ = failed;
    END_ALONE(who);
#ifndef NO_SLIP_FOR_SHARED
    if
    :: !OUTCOME(slip[who]) -> slip[who] = failed; slip_retries[who] = r
    :: else -> skip
    fi;
#endif
    lease(who, n)
}

inline interrupt(who, r, w, n) {
    /* What a body never ran for is not counted, unless the undoing was lost with its process. */
    assert(!idle || losses > 0);
    if
    :: interruptions < INTERRUPTIONS -> begin(who, r, w, interruptions + 1, n)
    :: else ->
        state = unknown; live = false; nonce = 0; verdict = nobody_knows;
        told_ = unknown; tell_alone(who, n)
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

/* An answer stands in the slip, whoever has the key; but not where the key was forgotten since. */
#define HAS_SLIP (slip[who] != none && (state == absent || owner != NOBODY))
#ifdef NO_SLIP_OF_ANOTHERS_KEY
#define COPY (HAS_SLIP && r <= slip_retries[who] && (state == absent || MINE))
#else
#define COPY (HAS_SLIP && r <= slip_retries[who])
#endif
#define HAS_OUTCOME (HAS_SLIP && OUTCOME(slip[who]))
#define GIVEN_UP(n) ((given_up >> (n)) & 1)

inline claim_alone(who, r, w, n) {
    if
    :: state == absent && COPY -> answer_again(who, n)
    :: state == absent && !COPY -> begin(who, r, w, 0, n)
    :: state != absent && (nonce == n || GIVEN_UP(n)) ->
        if
        :: state == running && nonce == n -> verdict = claimed
        :: DONE && live && nonce == n ->
            verdict = replay; told_ = state; via_ = RECORD
        :: else -> verdict = busy
        fi
    :: state != absent && nonce != n && !GIVEN_UP(n) ->
        if
        :: state == released && MINE && COPY -> answer_again(who, n)
        :: state == released && MINE && !COPY && nonce != 0 && r < retries -> verdict = superseded
        :: state == released && !(MINE && nonce != 0 && r < retries) && !COPY ->
            if
            :: nonce != 0 -> begin(who, r, w, interruptions, n)
            :: else -> begin(who, r, w, 0, n)
            fi
        :: !MINE && COPY && (HAS_OUTCOME || !(slip[who] == succeeded && state == succeeded)) ->
            answer_again(who, n)
        :: !MINE && COPY && !HAS_OUTCOME && slip[who] == succeeded && state == succeeded ->
            verdict = replay; told_ = succeeded; lease(who, n)
        :: !(state == released && (MINE || !COPY)) && !(!MINE && COPY) -> decide(who, r, w, n)
        fi
    fi
}

/* Another delivery is answering this call now: this one waits, whatever its verdict would be. */
#ifdef NO_SENDING
#define TOLD_NOW(n) false
#else
#define TOLD_NOW(n) (!noted[who] && sending[who] != 0 && sending[who] != n)
#endif

inline claim(who, r, w, n) {
    via_ = 0; told_ = none;
    if
    :: TOLD_NOW(n) -> verdict = busy
    :: !TOLD_NOW(n) -> claim_alone(who, r, w, n)
    fi;
    settle_numbers()
}

inline decide(who, r, w, n) {
    if
    :: SHARES && !MINE && state != succeeded && slip[3 - who] == failed ->
        share(who, r, n)
    :: state == running ->
        if
        :: OLD_COPY -> verdict = superseded
        :: !OLD_COPY && LEASED -> verdict = busy
        :: !OLD_COPY && !LEASED && MINE && r > retries -> begin(who, r, w, 0, n)
        :: !OLD_COPY && !LEASED && !(MINE && r > retries) -> interrupt(who, r, w, n)
        fi
    :: state == retrying ->
        if
        :: OLD_COPY -> verdict = superseded
        :: !OLD_COPY && (MINE || OVERDUE) -> begin(who, r, w, 0, n)
        :: !OLD_COPY && !MINE && !OVERDUE -> verdict = busy
        fi
    :: DONE ->
        if
        :: MINE && live -> verdict = busy
        :: MINE && !live && COPY && HAS_OUTCOME -> answer_again(who, n)
        :: MINE && !live && !(COPY && HAS_OUTCOME) ->
            verdict = replay; told_ = state;
            if
            :: CALLBACKS && !noted[who] -> live = true; process = w; nonce = n; via_ = RECORD
            :: else -> skip
            fi
        :: !MINE && state == failed -> begin(who, r, w, 0, n)
        :: !MINE && state == succeeded ->
            verdict = replay; told_ = succeeded;
#if GIVES && !defined(NO_END_OF_WHO_IS_ALONE)
            if
            :: IS_RUN(who) -> slip[who] = succeeded; slip_retries[who] = r; gone[who] = 0; cut[who] = 0
            :: else -> skip
            fi;
#endif
            lease(who, n)
        fi
    :: state == unknown -> verdict = nobody_knows; told_ = unknown; tell_alone(who, n)
    fi
}

#ifdef NO_TOKEN_CHECK
#define HOLDS(t) true
#else
#define HOLDS(t) (token == t)
#endif
#define RELEASES(new) ((new == ignored) || (new == failed))
#define BECOMES(new) (new == ignored -> released : new)
#ifdef NO_SLIP_AT_THE_END
#define ANSWERED_BY_COPY false
#else
/* A copy can have answered a run's call only while the outcome is unknown. */
#define ANSWERED_BY_COPY (state == unknown && (slip[who] != none || sending[who] != 0))
#endif

#if GIVES
#define GONE(t) (gone[who] != 0 && gone[who] == t)
#else
#define GONE(t) false
#endif

inline settle(who, t, new, r, by) {
    if
#if GIVES
    :: GONE(t) ->
        /* Its run has given the key up: its own call is answered, whoever has the key. */
        verdict = recorded;
        if
        :: slip[who] == none ->
            answer[who] = new; answered = answered | (new == ignored -> who : 0);
#ifndef NO_SLIP_AFTER_RELEASE
            slip[who] = new; slip_retries[who] = r
#else
            gone[who] = 0
#endif
            ;
            sending[who] = 0;
            if
            :: CALLBACKS && by != 0 && new != ignored -> sending[who] = nonces[by]
            :: else -> skip
            fi
        :: else -> skip                      /* asked again */
        fi
#endif
    :: !GONE(t) && state == BECOMES(new) && owner == who && token == t + RELEASES(new) ->
        verdict = recorded  /* asked again */
    :: else ->
        if
        :: state != absent && !HOLDS(t) -> verdict = lost
        :: state == succeeded && HOLDS(t) -> verdict = recorded
        :: HOLDS(t) && ANSWERED_BY_COPY && new == retrying ->
            verdict = answered_before  /* there is nothing to retry any more */
        :: else ->
            if
            :: state == absent -> interruptions = 0
            :: else -> assert(t >= token)
            fi;
            verdict = recorded;
            if
            :: ANSWERED_BY_COPY ->
                verdict = answered_before;
                if
                :: RELEASES(new) && slip[who] == none -> slip[who] = new; slip_retries[who] = r
                :: else -> skip
                fi
            :: !ANSWERED_BY_COPY && RELEASES(new) -> answer[who] = new;
                answered = answered | (new == ignored -> who : 0);
#ifndef NO_SLIP
                slip[who] = new; slip_retries[who] = r; noted[who] = false; sending[who] = 0;
                gone[who] = 0; cut[who] = 0
#endif
            :: !ANSWERED_BY_COPY && new == succeeded -> answer[who] = succeeded
            :: !ANSWERED_BY_COPY && new == retrying -> skip
            fi;
            token = t;
            state = BECOMES(new); owner = who; retries = r; nonce = 0; process = 0;
            live = (new == retrying);
            if
            :: RELEASES(new) ->
                token = t + 1;
                RISE(highest, token)
            :: new == retrying -> sent_on[who] = r
            :: else -> skip
            fi;
#ifndef NO_DELIVERY_LEASE
            if
            :: CALLBACKS && by != 0 && verdict == recorded && (new == failed || new == succeeded) ->
                /* Its callbacks are still to be sent. */
                live = true; process = by;
                if
                :: new == failed -> sending[who] = nonces[by]
                :: else -> skip
                fi
            :: else -> skip
            fi;
#endif
#ifdef RELEASE_DELETES
            if
            :: RELEASES(new) ->
                state = absent; token = 0; owner = NOBODY; retries = 0; interruptions = 0
            :: else -> skip
            fi;
#endif
            skip
        fi
    fi;
    if
    :: new == succeeded && (verdict == recorded || verdict == answered_before) && accepted_token != t ->
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
        state = released; token++; live = false; process = 0; idle = false;
        RISE(highest, token)
    :: DONE && live ->
        if
        :: nonce == n -> live = false; process = 0
        :: else -> skip              /* another's, and it stays so */
        fi
    :: state != absent && state != running && !(DONE && live) && nonce != n ->
        if
        :: nonce == 0 && state == released -> interruptions = 0
        :: else -> skip
        fi;
        nonce = n
    :: else -> skip
    fi;
#ifndef ONE_NONCE
    /* It is remembered for as long as the claim may come. */
    if
    :: LATE(n) -> given_up = given_up | (1 << n)
    :: else -> skip
    fi;
#endif
    settle_numbers()
}

inline note(who, r, t, told) {
    /* The message was answered: its slip says so, and whoever sent its callbacks is through. */
    if
    :: token == t && DONE && live ->
        live = false; process = 0; nonce = 0
    :: else -> skip
    fi;
    if
    /* What was left while this was being told was not told itself. */
    :: slip[who] == none || (OUTCOME(told) && (!OUTCOME(slip[who]) || sending[who] != 0)) ->
        slip[who] = told; slip_retries[who] = r
    :: else -> skip
    fi;
    if
    :: answer[who] == none && !FORGOTTEN -> answer[who] = told
    :: else -> skip
    fi;
    noted[who] = CALLBACKS; sending[who] = 0
}

inline end_lease(who, w) {
#ifdef NO_PROCESS_CHECK
    if
    :: state == running && MINE && live -> live = false; nonce = 0; idle = false
#else
    if
    :: (state == running || state == succeeded || state == failed) && MINE && process == w && live ->
        live = false; nonce = 0; idle = false
#endif
    :: else -> skip
    fi;
    if
    :: sending[who] != 0 && sending[who] == nonces[w] -> sending[who] = 0
    :: else -> skip
    fi
}

/* --- a worker -------------------------------------------------------------------------------- */

#define DIE atomic { crashes < CRASHES -> crashes++; goto dead }

inline rest() {
    tokens[me] = 0; nonces[me] = 0; trusts[me] = false; alone[me] = 0;
    who = 0; r = 0; coming = 0; verdict = 0; wanted = 0; told = none; via = 0; wrote = false;
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
    if
    :: note_by == me -> out[note_who] = 2; forget_note()
    :: else -> skip
    fi;
    if
    :: (out[who] == 1 || (told == unknown && answer[who] == unknown)) && via != 0 ->
        out[who] = 2                                 /* sent or told, and not noted */
    :: else -> skip
    fi;
    rest()
}

inline forget_note() {
    note_token = 0; note_nonce = 0; note_who = NOBODY; note_retries = 0; note_by = 0;
    note_told = none
}

#define WITHOUT_KEY (gone[who] != 0 && gone[who] == tokens[me])

inline judge() {
    /* What becomes of the call, by the record that came with the answer. */
    via = 0; told = none;
    if
    :: verdict == recorded ->
        told = wanted;
        if
        :: CALLBACKS && (wanted == kept || wanted == failed) && WITHOUT_KEY -> via = SLIP
        :: CALLBACKS && (wanted == failed || wanted == succeeded) && !WITHOUT_KEY ->
            via = RECORD; tokens[me] = token
        :: else -> skip
        fi
    :: verdict == lost && wrote && slip[who] != none -> verdict = recorded; told = wanted
    :: verdict == lost && !(wrote && slip[who] != none) && owner != who ->
        if
        :: slip[who] != none || CALLBACKS -> verdict = busy
        :: slip[who] == none && !CALLBACKS && DONE ->
            verdict = replay; told = state; via = LOST_VIA
        :: slip[who] == none && !CALLBACKS && state == released -> verdict = replay
        :: else -> verdict = busy
        fi
    :: else -> skip
    fi
}

inline note_at_once() {
    /* An outcome that a run of this message did not make, to one without callbacks: the decision and
     * the slip are one step here. In the code the tracer runs between them. */
    if
    :: !CALLBACKS && via == SLIP ->
        via = 0;
        if
        :: told != succeeded -> note(who, r, 0, told)
        :: else -> skip
        fi
    :: else -> skip
    fi
}

inline tell_answer() {
    answered = answered | who;
    assert(told == none || answer[who] == none || answer[who] == told || FORGOTTEN
        || RETRIES > 0 || out[who] == 2);
    if
    :: CALLBACKS && via != 0 -> assert(out[who] != 1); out[who] = (out[who] == 0 -> 1 : 2)
    :: else ->
        if
        :: told != none && answer[who] == none && !FORGOTTEN -> answer[who] = told
        :: else -> skip
        fi;
        if
        :: told == succeeded || told == none -> via = 0      /* the record keeps it */
        :: else -> skip                                      /* it is still to be noted */
        fi
    fi
}

/* It stood still, and the lease under which it was to tell an error is over: its copy asks again. */
#define STALE (!CALLBACKS && told == unknown && via == SLIP && slip[who] == none \
    && sending[who] != nonces[me])

inline give_up_claim() {
    if
    :: FREE_SLOT(0) -> slot = 0
    :: else -> slot = 1
    fi;
    undo_nonce[slot] = nonces[me]; undo_who[slot] = who; undo_retries[slot] = r; nonces[me] = 0;
    slot = 0
}

inline come_late() {
    if
    :: FREE_SLOT(0) -> slot = 0
    :: else -> slot = 1
    fi;
    late_nonce[slot] = nonces[me]; late_who[slot] = who; late_retries[slot] = r;
    late_process[slot] = me;
    undo_nonce[slot] = nonces[me]; undo_who[slot] = who; undo_retries[slot] = r; nonces[me] = 0;
    slot = 0
}

proctype Worker(byte me) {
    byte who, r, tag, coming;        /* coming: the attempt that the record is to name */
    byte via, slot;                  /* via: where the callbacks are sent under a lease, and noted */
    bool wrote;                      /* its end was recorded, and it did not hear so */
    mtype verdict, wanted, told = none;
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
            :: verdict == replay && via_ == RECORD -> tokens[me] = token
            :: else -> skip
            fi;
            told = told_; via = via_; told_ = none; via_ = 0;
            if
            :: via != 0 && (verdict == nobody_knows || (CALLBACKS && verdict == replay)) -> skip
            :: else -> nonces[me] = 0
            fi
        :: answers < ANSWERS ->
            answers++; told_ = none; via_ = 0;
            if
            :: true -> verdict = 0; goto ask              /* with the same nonce */
            :: FREE_SLOT(0) || FREE_SLOT(1) ->
                if
                :: verdict == claimed -> idle = true
                :: else -> skip
                fi;
                verdict = 0; give_up_claim(); goto put_back
            fi
        fi }
    :: atomic { delays < DELAYS && (FREE_SLOT(0) || FREE_SLOT(1)) -> delays++;
        come_late(); goto put_back }
    :: DIE
    fi;
    if
    :: verdict == claimed -> goto granted
    :: verdict == busy -> goto put_back
    :: verdict == replay || verdict == nobody_knows -> goto tell
    :: verdict == superseded -> goto done
    fi;

granted:
#if CUTS > 0
    if
    :: DIE
    :: atomic { cuts < CUTS -> cuts++; trusts[me] = false;
        if
        :: tokens[me] == token && state == running -> idle = true;
#ifndef NO_UNDO
            nonces[me] = nonce;
            if
            :: abandon(who, r, nonces[me]); nonces[me] = 0
            :: FREE_SLOT(0) || FREE_SLOT(1) -> give_up_claim()     /* the store is away */
            fi
#endif
        :: else -> skip
        fi;
        tokens[me] = 0;
        if
        :: told = failed; via = SLIP; note_at_once(); goto tell      /* its call fails */
        :: told = none; goto put_back
        fi }
    :: goto body
    fi;
#endif
body:
    if
    :: DIE
    :: atomic { tokens[me] == token && state == running && !live ->
        live = true; trusts[me] = true; goto body }      /* its heartbeat: nobody took over */
    :: atomic { state == absent && emptied > 0 -> state = running; owner = who; retries = r;
        token = tokens[me]; process = me; live = true; trusts[me] = true; goto body }
#if GIVES
    :: atomic { gives < GIVES && tokens[me] == token && state == running -> gives++;
        clear_slip(who); slip_retries[who] = r; gone[who] = token; cut[who] = interruptions;
        state = released; token++; RISE(highest, token); live = false; nonce = 0; process = 0;
        new_nonce(me); trusts[me] = false; alone[me] = who;
#ifndef NO_LEASE_AFTER_RELEASE
        sending[who] = nonces[me];
#endif
        goto body }
    :: atomic { IS_RUN(who) && gone[who] == tokens[me] && sending[who] == 0 ->
        sending[who] = nonces[me]; alone[me] = who; goto body }    /* its heartbeat */
#endif
    :: atomic { wanted = (nonces[me] != 0 -> kept : succeeded); coming = r; trusts[me] = false;
        alone[me] = 0 } -> goto end_of_body
    :: atomic { wanted = failed; coming = r; trusts[me] = false; alone[me] = 0 } -> goto end_of_body
    :: atomic { ignores < IGNORES -> ignores++;
        wanted = ignored; coming = r; trusts[me] = false; alone[me] = 0 } -> goto end_of_body
    :: atomic { r < RETRIES -> wanted = retrying; coming = r + 1; trusts[me] = false;
        if
        :: losses < LOSSES -> losses++; excused = excused | who
        :: publish(who, r + 1)           /* Celery publishes first, then we record it */
        fi } -> goto end_of_body
    fi;

end_of_body:
    if
    :: atomic { if
        :: CALLBACKS && nonces[me] == 0 -> new_nonce(me)
        :: else -> skip
        fi;
        settle(who, tokens[me], wanted, coming, me);
        if
        :: judge(); note_at_once()
        :: answers < ANSWERS -> answers++; wrote = (verdict == recorded); verdict = 0;
            goto end_of_body
        fi }
    :: atomic { wanted == succeeded && outages < OUTAGES && owed_token == 0 -> outages++;
        owed_token = tokens[me]; owed_who = who; owed_by = me; verdict = recorded;
        told = none }
    :: DIE
    fi;
    if
    :: wanted == retrying -> goto done   /* its successor is out */
    :: wanted != retrying && (verdict == recorded || verdict == replay) -> goto tell
    :: wanted != retrying && (verdict == busy || verdict == answered_before) -> goto put_back
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
    :: atomic { STALE -> via = 0; nonces[me] = 0; goto put_back }
    :: atomic { !STALE -> tell_answer() }
    :: DIE
    fi;
    if
    :: via == 0 -> skip
    :: atomic { via != 0 ->
        if
        :: via == SLIP -> tokens[me] = 0
        :: else -> skip
        fi;
        note(who, r, tokens[me], told); via = 0; nonces[me] = 0 }
    :: atomic { via != 0 && notes < NOTES && note_who == NOBODY -> notes++;
        if
        :: via == SLIP -> tokens[me] = 0
        :: else -> skip
        fi;
#ifndef NO_SECOND_NOTE
        note_token = tokens[me]; note_nonce = nonces[me]; note_who = who;
        note_retries = r; note_by = me; note_told = told;
#endif
        via = 0; nonces[me] = 0 }
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
    sent_on[1] = 0; sent_on[2] = 0;
    answer[1] = none; answer[2] = none; out[1] = 0; out[2] = 0; idle = false
}

#define BEATS (token == tokens[1] || token == tokens[2] || token == owed_token \
    || token == note_token)
#define PENDING(n) (n != 0 && (UNDOING(n) || nonces[1] == n || nonces[2] == n))
#define SENDS(n) (nonces[1] == n || nonces[2] == n || note_nonce == n)

#define LOSE_ALONE(who) \
    if \
    :: IS_RUN(who) -> alone[1] = (alone[1] == who -> 0 : alone[1]); \
        alone[2] = (alone[2] == who -> 0 : alone[2]) \
    :: else -> out[who] = 2 \
    fi

#define END_OF_SENDING(who) \
    :: atomic { sending[who] != 0 && !SENDS(sending[who]) -> sending[who] = 0 } \
    :: atomic { sending[who] != 0 && SENDS(sending[who]) && stalls < STALLS -> stalls++; \
        sending[who] = 0; LOSE_ALONE(who) }

#define ARRIVAL(i) \
    :: atomic { late_nonce[i] != 0 -> arrive(i) } \
    :: atomic { undo_nonce[i] != 0 -> \
        if \
        :: abandon(undo_who[i], undo_retries[i], undo_nonce[i]) \
        :: losses < LOSSES -> losses++ \
        fi; \
        undo_nonce[i] = 0; undo_who[i] = NOBODY; undo_retries[i] = 0 }

inline arrive(i) {
    who = late_who[i]; r = late_retries[i];
    claim(who, r, late_process[i], late_nonce[i]);
    if
    :: verdict == claimed -> idle = true
    :: else -> skip
    fi;
    given_up = given_up & ~(1 << late_nonce[i]);
    who = 0; r = 0; verdict = 0; told_ = none; via_ = 0;
    late_nonce[i] = 0; late_who[i] = NOBODY; late_retries[i] = 0; late_process[i] = 0
}

proctype World() {
    byte who, r;
    mtype verdict;
end_world:
    do
    :: atomic { !sent -> sent = true; publish(DUPLICATE, 0) }
    RESTORE(0) RESTORE(1) RESTORE(2) RESTORE(3) RESTORE(4) RESTORE(5)
#ifndef NO_EXPIRY
    /* Who still asks, and an undoing that is still to arrive, come within the lease. */
    :: atomic { state == running && live && !BEATS && !PENDING(nonce) -> live = false }
    :: atomic { DONE && live && !BEATS -> live = false }
    END_OF_SENDING(1) END_OF_SENDING(2)
#if CALLBACKS
    :: atomic { DONE && live && BEATS && stalls < STALLS -> stalls++; live = false; out[owner] = 2 }
    :: atomic { note_who != NOBODY ->
        note(note_who, note_retries, note_token, note_told); forget_note() }
#endif
#endif
    :: atomic { state == running && live && BEATS && stalls < STALLS ->
        stalls++; live = false; trusts[1] = false; trusts[2] = false }
    :: atomic { state == retrying && live -> live = false }
    ARRIVAL(0) ARRIVAL(1)
    :: atomic { owed_token != 0 ->
        who = owed_who;
        settle(who, owed_token, succeeded, retries, 0);
        who = 0; verdict = 0;
        owed_token = 0; owed_who = NOBODY; owed_by = 0; settle_numbers() }
    :: atomic { emptied < EMPTIED && state != absent -> emptied++;
        state = absent; token = 0; owner = NOBODY; retries = 0; interruptions = 0; nonce = 0;
        process = 0; live = false; given_up = 0; clear_slip(1); clear_slip(2); begin_anew() }
    :: atomic { forgets < FORGETS && state != absent -> forgets++;
        state = released; new_token(); owner = NOBODY; retries = 0; interruptions = 0; nonce = 0;
        process = 0; live = false; given_up = 0; begin_anew(); settle_numbers() }
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
