#!/bin/sh
# Checks the claim protocol with spin (`make model`): each property under each set of faults, and
# that the search finds each fault that is put into the protocol. Needs spin and a C compiler.
set -eu
cd "$(dirname "$0")"
for tool in spin cc; do
    command -v $tool >/dev/null || {
        echo "make model needs spin and a C compiler (on Debian: apt install spin gcc)" >&2
        exit 2
    }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp ./*.pml "$work"
cd "$work"
# The checker is as long as the protocol: to optimise it takes longer than most searches do.
failed=0 checks=0 started=$(date +%s) optimise=-O0 model=claim

# check TITLE EXPECTED("holds" or "is found") PROPERTY("safety" or a claim's name) DEFINITIONS...
check() {
    title=$1 expected=$2 property=$3
    shift 3
    options="-DNFAIR=3" search="-a -f -N $property"
    [ "$property" = safety ] && options="-DSAFETY -DNOCLAIM" search=""
    spin -a "$@" $model.pml >spin.out 2>&1 && cc -w $optimise -DMEMLIM=4000 $options -o pan pan.c || {
        cat spin.out
        exit 2
    }
    began=$(date +%s)
    nice -n 10 ./pan -m1000000 $search >out 2>&1 || true
    took=$(($(date +%s) - began))
    errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' out)
    states=$(sed -n 's/ *\([0-9.e+]*\) states, stored.*/\1/p' out | head -n 1)
    memory=$(sed -n 's/ *\([0-9]*\)[0-9.]*\ttotal actual memory usage.*/\1/p' out)
    case ${errors:-none} in
    none) outcome="NO ANSWER" ;;
    0) outcome="holds" ;;
    *) outcome="is found" ;;
    esac
    # A search that was cut short shows nothing, unless it found something.
    if [ "$outcome" = holds ] && grep -qi "depth too small\|out of memory\|interrupted" out; then
        outcome="CUT SHORT"
    fi
    if [ "$expected" = holds ] && [ "$outcome" = "is found" ]; then outcome="VIOLATED"; fi
    if [ "$expected" = "is found" ] && [ "$outcome" = holds ]; then outcome="NOT FOUND"; fi
    printf '%-64s %-9s %12s states %5s MB %3s s\n' "$title" "$outcome" "$states" "$memory" "$took"
    checks=$((checks + 1))
    if [ "$outcome" != "$expected" ]; then
        failed=$((failed + 1))
        grep -v unreached out | head -n 20
        # The steps that lead there.
        [ -f $model.pml.trail ] && spin -t -p "$@" $model.pml | grep -v "else\|free_\|v_" | tail -n 80
    fi
    rm -f $model.pml.trail
}

echo "One accepted completion, one body under a lease, tokens rise, nobody is left out:"
optimise=-O2 check "  a crash, a redelivery, a stall" holds safety -DCRASHES=1 -DCOPIES=1 -DSTALLS=1
check "  two crashes, so that the outcome is unknown" holds safety -DCRASHES=2
optimise=-O2 check "  a retry and a crash" holds safety -DRETRIES=1 -DCRASHES=1
optimise=-O2 check "  a retry, whose message is lost, and a redelivery" holds safety \
    -DRETRIES=1 -DLOSSES=1 -DCOPIES=1
check "  a retry, whose message is lost, and a stall" holds safety -DRETRIES=1 -DLOSSES=1 -DSTALLS=1
optimise=-O2 check "  an answer of the store is lost, a crash, a stall" holds safety \
    -DANSWERS=1 -DCRASHES=1 -DSTALLS=1
optimise=-O2 check "  a claim arrives late, an answer is lost, a stall" holds safety \
    -DDELAYS=1 -DANSWERS=1 -DSTALLS=1
optimise=-O2 check "  a claim arrives late, its undoing is lost, a crash" holds safety \
    -DDELAYS=1 -DLOSSES=1 -DCRASHES=1
check "  the store is away at a completion, a crash, a stall" holds safety \
    -DOUTAGES=1 -DCRASHES=1 -DSTALLS=1
check "  the store comes back empty, a crash, a stall" holds safety \
    -DEMPTIED=1 -DCRASHES=1 -DSTALLS=1
check "  the key is forgotten, a crash, a stall" holds safety -DFORGETS=1 -DCRASHES=1 -DSTALLS=1
check "  the key is forgotten, a retry" holds safety -DFORGETS=1 -DRETRIES=1

echo "Who is answered stays answered, callbacks go out once, what never ran doesn't count:"
check "  an answer without an outcome, a redelivery" holds safety -DIGNORES=1 -DCOPIES=1
check "  a failure that is shared, a redelivery" holds safety -DSHARES=1 -DCOPIES=1
check "  a failure that is shared, a redelivery, a crash" holds safety \
    -DSHARES=1 -DCOPIES=1 -DCRASHES=1
check "  nobody knows how a run ended, a redelivery, a stall" holds safety \
    -DINTERRUPTIONS=0 -DCOPIES=1 -DSTALLS=1
check "  a body gives its key up, a redelivery, a stall" holds safety \
    -DGIVES=1 -DCOPIES=1 -DSTALLS=1
check "  a body gives its key up, a crash" holds safety -DGIVES=1 -DCRASHES=1
check "  callbacks, a body gives its key up, a redelivery" holds safety \
    -DCALLBACKS=1 -DGIVES=1 -DCOPIES=1
check "  callbacks, a redelivery, a note is refused once" holds safety \
    -DCALLBACKS=1 -DCOPIES=1 -DNOTES=1
check "  callbacks, a failure that is shared, a redelivery" holds safety \
    -DCALLBACKS=1 -DSHARES=1 -DCOPIES=1
check "  callbacks, nobody knows how a run ended, a redelivery, a stall" holds safety \
    -DCALLBACKS=1 -DINTERRUPTIONS=0 -DCOPIES=1 -DSTALLS=1
check "  callbacks, a crash" holds safety -DCALLBACKS=1 -DCRASHES=1
optimise=-O2 check "  two claims arrive late" holds safety -DDELAYS=2
check "  a claim is cut off before its body, a redelivery" holds safety -DCUTS=1 -DCOPIES=1

for property in everybody_answered no_lock_for_ever; do
    case $property in
    everybody_answered) echo "In every fair run everybody gets an answer:" ;;
    no_lock_for_ever) echo "In every fair run a locked key is free or answered, later:" ;;
    esac
    optimise=-O2 check "  two crashes" holds $property -DCRASHES=2
    check "  a redelivery and a stall" holds $property -DCOPIES=1 -DSTALLS=1
    check "  a retry, whose message is lost, and a stall" holds $property \
        -DRETRIES=1 -DLOSSES=1 -DSTALLS=1
    optimise=-O2 check "  an answer of the store is lost, and a crash" holds $property -DANSWERS=1 -DCRASHES=1
    check "  a claim arrives late, and its undoing is lost" holds $property -DDELAYS=1 -DLOSSES=1
    check "  the store is away at a completion, and a crash" holds $property \
        -DOUTAGES=1 -DCRASHES=1
    check "  the store comes back empty, and a crash" holds $property -DEMPTIED=1 -DCRASHES=1
done

echo "Faults in the protocol:"
check "  a write doesn't compare the token" "is found" safety -DNO_TOKEN_CHECK -DSTALLS=1
check "  a claim doesn't compare the lease" "is found" safety -DNO_LEASE_CHECK
check "  a claim doesn't compare retries" "is found" safety \
    -DNO_RETRIES_CHECK -DRETRIES=1 -DCOPIES=1 -DSTALLS=1
check "  the parent doesn't compare the process" "is found" safety \
    -DNO_PROCESS_CHECK -DCRASHES=1 -DCOPIES=1 -DSTALLS=1
check "  a release deletes the record" "is found" safety -DRELEASE_DELETES -DSTALLS=1
check "  an answer leaves no slip" "is found" safety -DNO_SLIP -DIGNORES=1 -DCOPIES=1
check "  a slip isn't looked at once another has the key" "is found" safety \
    -DNO_SLIP_OF_ANOTHERS_KEY -DCOPIES=1
check "  a run that lost leaves no slip" "is found" safety \
    -DNO_SLIP_FOR_A_LOSER -DCOPIES=1 -DSTALLS=1
check "  two copies of a message tell of an error" "is found" safety \
    -DNO_LEASE_FOR_ERRORS -DINTERRUPTIONS=0 -DCOPIES=1 -DSTALLS=1
check "  a failure that is shared leaves no slip until it is told" "is found" safety \
    -DNO_SLIP_FOR_SHARED -DSHARES=1 -DCOPIES=1
check "  a body that gives its key up has no lease" "is found" safety \
    -DNO_LEASE_AFTER_RELEASE -DGIVES=1 -DCOPIES=1
check "  its end leaves no slip" "is found" safety -DNO_SLIP_AFTER_RELEASE -DGIVES=1 -DCOPIES=1
check "  it ends beside its copy, having lost its lease" "is found" safety \
    -DNO_END_OF_WHO_IS_ALONE -DGIVES=1 -DCOPIES=1 -DSTALLS=1
check "  two copies of a message send its callbacks" "is found" safety \
    -DNO_SENDING -DCALLBACKS=1 -DCOPIES=1
check "  an end holds no delivery lease" "is found" safety \
    -DNO_DELIVERY_LEASE -DCALLBACKS=1 -DCOPIES=1
check "  a note that was refused isn't told again" "is found" safety \
    -DNO_SECOND_NOTE -DCALLBACKS=1 -DCOPIES=1 -DNOTES=1
check "  one claim that was given up is remembered, not two" "is found" safety \
    -DONE_NONCE -DDELAYS=2
check "  a claim that was cut off isn't undone" "is found" safety -DNO_UNDO -DCUTS=1
check "  a busy message isn't put back" "is found" safety -DNO_REPUBLISH
check "  a run that lost to its own copy isn't put back" "is found" safety \
    -DNO_RETURN_OF_A_ZOMBIE -DCRASHES=1 -DCOPIES=1 -DSTALLS=1
check "  a retry whose message is lost keeps its key" "is found" everybody_answered \
    -DNO_OVERDUE -DRETRIES=1 -DLOSSES=1
check "  nobody's lease ends" "is found" no_lock_for_ever -DNO_EXPIRY -DCRASHES=1

model=turns
echo "Whose key has no window runs alone, or gets the outcome that it waited for; no change is lost:"
check "  answer: two crashes" holds safety -DMODE=ANSWER -DCRASHES=2
check "  answer: a crash, a stall" holds safety -DMODE=ANSWER -DCRASHES=1 -DSTALLS=1
check "  answer: a redelivery, a stall" holds safety -DMODE=ANSWER -DCOPIES=1 -DSTALLS=1
check "  run: two crashes" holds safety -DMODE=RUN -DCRASHES=2
check "  run: a redelivery, a stall, a crash" holds safety \
    -DMODE=RUN -DCOPIES=1 -DSTALLS=1 -DCRASHES=1
check "  last: two crashes" holds safety -DMODE=LAST -DCRASHES=2
check "  last: a redelivery, a stall, a crash" holds safety \
    -DMODE=LAST -DCOPIES=1 -DSTALLS=1 -DCRASHES=1
check "  last: the message of who runs next is lost, a crash" holds safety \
    -DMODE=LAST -DLOSSES=1 -DCRASHES=1
check "  answer: everybody is answered, a crash" holds everybody_answered -DMODE=ANSWER -DCRASHES=1
check "  run: everybody is answered, a crash" holds everybody_answered -DMODE=RUN -DCRASHES=1
check "  last: everybody else is answered, a lost message, a crash" holds everybody_answered \
    -DMODE=LAST -DLOSSES=1 -DCRASHES=1

echo "Faults in it:"
check "  answer: who waited for a run runs after it" "is found" safety -DMODE=ANSWER -DNO_SHARE
check "  answer: who did not wait gets the last outcome" "is found" safety \
    -DMODE=ANSWER -DWRONG_SHARE_WITH_ALL
check "  run: a claim doesn't compare the lease" "is found" safety -DMODE=RUN -DNO_LEASE_CHECK
check "  run: who waited for a run gets its outcome" "is found" safety \
    -DMODE=RUN -DWRONG_SHARE_WITH_ALL
check "  run: the runs of others that were cut off count" "is found" safety \
    -DMODE=RUN -DWRONG_COUNT_OF_OTHERS -DCRASHES=2
check "  last: who finds the key free has it" "is found" safety -DMODE=LAST -DNO_FIRST
check "  last: when a call came is not kept" "is found" safety -DMODE=LAST -DNO_PLACE
check "  last: who came later gets the outcome of an earlier run" "is found" safety \
    -DMODE=LAST -DWRONG_SHARE_WITH_ALL
check "  last: who was displaced runs all the same" "is found" safety -DMODE=LAST -DNO_SHARE
check "  last: all wait for a message that is lost" "is found" everybody_answered \
    -DMODE=LAST -DNO_LAPSE -DLOSSES=1

model=reserved
echo "What is published is answered, and nobody waits for what was not published:"
check "  two callers die, a message is refused" holds safety -DDEATHS=2 -DREFUSALS=1
check "  a caller dies, a message is refused, a crash" holds safety \
    -DDEATHS=1 -DREFUSALS=1 -DCRASHES=1
check "  a message is refused, a redelivery" holds safety -DREFUSALS=1 -DCOPIES=1
check "  everybody is answered, a caller dies, a crash" holds everybody_answered \
    -DDEATHS=1 -DCRASHES=1

echo "Faults in it:"
check "  what is not confirmed stops others" "is found" safety -DNO_CONFIRMATION -DDEATHS=1
check "  a message is confirmed before it is published" "is found" safety -DWRONG_ORDER -DDEATHS=1
check "  a caller confirms another's reservation" "is found" safety -DNO_OWNER_CHECK -DDEATHS=1
check "  a claim doesn't end the reservation" "is found" safety -DNO_DROP

echo "$checks checks in $(($(date +%s) - started)) s, $failed failed"
[ "$failed" -eq 0 ]
