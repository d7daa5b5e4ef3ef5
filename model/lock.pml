/* The lock of the store, its slots and its state, with worker processes that may be killed
   between any two steps, and a supervisor that recovers what they leave. A model of
   src/fastframe (lock.h, slot_write, Storage.recover); see README.md next to it,
   and docs/lock.md.

   One statement is one step: at most one load, store or read-modify-write of one shared word.
   What stands together in `atomic` or `d_step` is one such access and the model's own
   bookkeeping ("ghosts", which no program has). Memory is sequentially consistent here. On
   real machines that holds for the four accesses that need it: a reader's add to `readers` and
   its look at `writer`, a writer's change of `writer` and its look at `readers`. (Only these are
   of the shape "store to one word, then load another", which release and acquire do not keep
   in order; MUTANT_LOOK_FIRST shows what happens then.) For everything else release and
   acquire are enough, because it is only touched under the lock: the next holder has
   loaded a word (0 from `writer`, 0 from each `readers`) that was stored with release by
   whoever left it, and so sees all that was done under it. A dead worker stores no release;
   there the death itself orders: all its stores are in memory before waitpid returns in the
   supervisor, and the supervisor's own stores come after that and are what the next one loads.

   Configuration, by -D: WORKERS, THREADS (of the first worker; the others have one), OPS
   (operations of each thread), HOLD (operations under one hold of the write lock, at most),
   CRASHES, STATES (2: without MAINTENANCE), TRIES (times that a lock that could not be taken is
   tried again before it is waited for), TURNS (a worker that waits may have the turn), TIMEOUTS
   (a wait may be given up), LIVE (operations without end, and none of the ghosts' numbers, which
   would grow with them), and the MUTANT_... faults, which must be found. */

#ifndef WORKERS
#define WORKERS 2
#endif
#ifndef THREADS
#define THREADS 1
#endif
#ifndef OPS
#define OPS 2
#endif
#ifndef HOLD
#define HOLD 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef STATES
#define STATES 2
#endif
#ifndef TRIES
#define TRIES 1
#endif

#define ALL_THREADS (THREADS + WORKERS - 1)
#define AREA_OF(id) (id < THREADS -> 0 : id - THREADS + 1)
#define THREADS_OF(w) (w == 0 -> THREADS : 1)

#define READ_WRITE 0
#define READ_ONLY 1
#define MAINTENANCE 2

/* What a worker is. VACANT: dead, recovered, and not replaced. */
#define ALIVE 0
#define DEAD 1
#define VACANT 2

/* Where a thread is. */
#define OUTSIDE 0
#define READING 1
#define WRITING 2

/* The shared memory. A slot's copy is two halves, which must always belong together. */
byte readers[WORKERS];
byte writer;
byte turn;
bool waits[WORKERS];    /* turn_due_ns */
bool gave_up[WORKERS];
byte state;
byte current;
byte low[2];
byte high[2];

/* The processes, as the kernel and the supervisor know them. */
byte life[WORKERS];
byte stopped[WORKERS];  /* threads of the worker that run no more */
byte crashes = CRASHES;

/* Ghosts. */
byte reading;           /* threads inside, by side; only of live workers */
byte writing;
byte done;              /* threads that have nothing more to do */
byte serial;            /* number of the last value that anybody set out to write */
byte known;             /* highest number that was acknowledged, to a writer or by a read */
byte decided;           /* the last state stored, */
byte decided_by = 255;  /* by which thread, */
bool promised;          /* and whether that was acknowledged */

#ifdef LIVE
#define GHOST(x) skip
#else
#define GHOST(x) x
#endif

/* Whether the lock lets a worker in: try_read and try_write look at both words at once. */
#define IS_FREE (writer == 0 && turn == 0)
#ifdef MUTANT_TURN_SUFFICES
#define IS_MY_TURN(w) (turn == w + 1)
#else
#define IS_MY_TURN(w) (writer == 0 && turn == w + 1)
#endif

/* A turn that has been used, or is not wanted any more: end_turn. */
inline end_turn(w)
{
	atomic {
		if
		:: turn == w + 1 -> turn = 0
		:: else
		fi
	}
}

/* Somebody has the write lock: whoever gave up may wait for it again. */
inline count_acquired()
{
	d_step {
#if WORKERS > 2
		gave_up[2] = false;
#endif
#if WORKERS > 1
		gave_up[1] = false;
#endif
		gave_up[0] = false
	}
}

/* One that has waited is inside, or gives up. */
inline end_wait(w)
{
#ifdef TURNS
	waits[w] = false;
	end_turn(w)
#else
	skip
#endif
}

/* One that is inside gives the turn to one that waits: give_turn. */
inline give_turn(w, to)
{
#if defined(TURNS) && WORKERS > 1
	if
	:: w != 0 && waits[0] -> to = 0
	:: w != 1 && waits[1] -> to = 1
#if WORKERS > 2
	:: w != 2 && waits[2] -> to = 2
#endif
	:: to = w
	fi;
	if
	:: to == w
	:: to != w ->
		if
		:: atomic { turn == 0 -> turn = to + 1 };
#ifndef MUTANT_GIVES_BLINDLY
			if
			:: !waits[to] -> end_turn(to)
			:: else
			fi
#endif
		:: else
		fi
	fi;
	to = 0
#else
	skip
#endif
}

/* A step of one that waits, but for entering: see_to_the_turn. A worker that is alive has
   its turn taken over only when it stands still for long, which a fair run does not do. */
#ifdef LIVE
#define MAY_TAKE_OVER(w) (writer == 0 && turn != 0 && turn != w + 1 && life[turn - 1] != ALIVE)
#else
#define MAY_TAKE_OVER(w) (writer == 0 && turn != 0 && turn != w + 1)
#endif
#ifdef TURNS
#define MAY_ASK (turn == 0)
#define MAY_PUBLISH(w) (!waits[w])
#else
#define MAY_ASK false
#define MAY_PUBLISH(w) false
#endif

proctype Thread(byte id; byte area)
{
	byte ops = OPS;
	byte hold, tries, i, copy, first, value, floor, place;
	bool switched, by_turn, waited;

start:
	{
		do
		:: ops == 0 -> goto finished

		/* --- A read ---------------------------------------------------------------- */
		:: ops > 0 ->
			d_step { GHOST(ops--; floor = known); tries = TRIES }
#ifdef MUTANT_STATE_OUTSIDE
			copy = state;
#endif
			do
			::
#ifdef MUTANT_LOOK_FIRST
				writer == 0;
				atomic { readers[area]++; reading++; place = READING };
				break
#elif defined(MUTANT_NO_BACKOFF)
				atomic { readers[area]++; reading++; place = READING };
				break
#else
				readers[area]++;
				if
				:: atomic { IS_FREE -> reading++; place = READING };
					give_turn(area, i);
					break
				:: atomic { IS_MY_TURN(area) -> reading++; place = READING };
					end_turn(area);
					break
#ifdef MUTANT_KEEPS_ITS_ONE
				:: else
#else
				:: else -> readers[area]--
#endif
				fi;
				if
				:: tries > 0 -> tries--
				:: tries == 0 && gave_up[area] -> goto answered
				:: tries == 0 && !gave_up[area] ->
					waited = true;
					do
					:: IS_FREE || IS_MY_TURN(area) -> break
					:: atomic { MAY_PUBLISH(area) -> waits[area] = true }
					:: atomic { MAY_ASK -> turn = area + 1 }
					:: atomic { MAY_TAKE_OVER(area) -> waits[turn - 1] = false; turn = area + 1 }
#ifdef TIMEOUTS
					:: true -> end_wait(area); gave_up[area] = true; goto answered
#endif
					od
				fi
#endif
			od;
			if
			:: waited -> end_wait(area)
			:: else
			fi;
			assert(writing == 0);
			if
			:: state == MAINTENANCE
			:: else ->
				copy = current;
				first = low[copy];
				value = high[copy];
				assert(first == value);
				assert(value >= floor);
				assert(!(promised && decided == MAINTENANCE))
			fi;
			atomic { readers[area]--; reading--; place = OUTSIDE };
			goto answered

		/* --- A write, or a switch of the state --------------------------------------- */
		:: ops > 0 ->
			d_step { GHOST(ops--); tries = TRIES; hold = HOLD }
#ifdef MUTANT_STATE_OUTSIDE
			copy = state;
#endif
try_write:
			do
			:: atomic { IS_FREE -> writer = area + 1 }; break
			:: atomic { IS_MY_TURN(area) -> writer = area + 1; by_turn = true }; break
			:: else ->
				if
				:: tries > 0 -> tries--
				:: tries == 0 && gave_up[area] -> goto answered
				:: tries == 0 && !gave_up[area] ->
					waited = true;
					do
					:: atomic { MAY_PUBLISH(area) -> waits[area] = true }
					:: atomic { IS_FREE -> writer = area + 1 }; goto has_writer
					:: atomic { IS_MY_TURN(area) -> writer = area + 1; by_turn = true };
						goto has_writer
					:: atomic { MAY_ASK -> turn = area + 1 }
					:: atomic { MAY_TAKE_OVER(area) -> waits[turn - 1] = false; turn = area + 1 }
#ifdef TIMEOUTS
					:: true -> end_wait(area); gave_up[area] = true; goto answered
#endif
					od
				fi
			od;
has_writer:
			i = 0;
#ifndef MUTANT_IGNORES_READERS
			do
			:: i < WORKERS ->
				if
				:: readers[i] == 0 -> i++
				:: else ->
					if
#ifdef MUTANT_NEVER_KEEPS_WRITER
					:: writer = 0; by_turn = false; goto try_write
#else
					:: tries > 0 -> tries--; writer = 0; by_turn = false; goto try_write
#endif
#ifndef MUTANT_NEVER_KEEPS_WRITER
					:: else ->
						/* It keeps `writer`; then every word is looked at again. */
						if
						:: readers[i] == 0 -> i = 0
#ifdef TIMEOUTS
						:: true ->
#ifndef MUTANT_KEEPS_WRITER
							writer = 0;
#endif
							end_wait(area);
							gave_up[area] = true;
							goto answered
#endif
						fi
#endif
					fi
				fi
			:: else -> break
			od;
#endif
			atomic { writing++; place = WRITING; assert(writing == 1 && reading == 0) };
			count_acquired();
			if
			:: by_turn -> end_turn(area)
			:: else -> i = 0; give_turn(area, i)
			fi;
			if
			:: waited -> end_wait(area)
			:: else
			fi;
			by_turn = false;
			do
			:: hold > 0 ->
				hold--;
				if
				:: /* A write. */
#ifdef MUTANT_STATE_OUTSIDE
					if
					:: copy == READ_WRITE ->
#else
					if
					:: state == READ_WRITE ->
#endif
						d_step { copy = 1 - current; GHOST(serial++; value = serial) };
#ifdef MUTANT_EARLY_REPLY
						GHOST(known = value);
#endif
#ifdef MUTANT_IN_PLACE
						copy = 1 - copy;
#endif
#ifdef MUTANT_FLIPS_FIRST
						current = copy;
#endif
						low[copy] = value;
						high[copy] = value;
						atomic {
							current = copy;
							assert(writing == 1 && reading == 0);
							assert(!(promised && decided != READ_WRITE))
						}
					:: else
					fi
				:: /* A switch. */
					byte wanted;
					if
					:: wanted = READ_WRITE
					:: wanted = READ_ONLY
#if STATES > 2
					:: wanted = MAINTENANCE
#endif
					fi;
					atomic {
						state = wanted;
						GHOST(decided = wanted; decided_by = id; promised = false);
						switched = true;
						wanted = 0
					}
				fi
			:: break
			od;
			/* release_write: a plain store. */
			atomic { assert(writer == area + 1); writer = 0; writing--; place = OUTSIDE };

			/* --- The reply ----------------------------------------------------------- */
answered:
			/* A switch that another has already overtaken promises nothing more here; what
			   it forbids is the overtaker's, or looked at under the lock (`decided`). */
			atomic {
				GHOST(
					if
					:: value > known -> known = value
					:: else
					fi;
					if
					:: switched && decided_by == id -> promised = true
					:: else
					fi
				);
				value = 0; first = 0; copy = 0; floor = 0; i = 0; tries = 0; hold = 0;
				switched = false; by_turn = false; waited = false
			};
progress:		skip
		od
	} unless { life[area] == DEAD };

	/* Killed. What was being asked is never answered. */
	d_step {
		if
		:: place == READING -> reading--
		:: place == WRITING -> writing--
		:: else
		fi;
		place = OUTSIDE;
		value = 0; first = 0; copy = 0; floor = 0; i = 0; tries = 0; hold = 0;
		switched = false; by_turn = false; waited = false;
		stopped[area]++
	};
end_killed:
	if
	:: atomic { life[area] == ALIVE -> stopped[area]-- }; goto start
	:: life[area] == VACANT -> goto gone
	fi;

finished:
	stopped[area]++;
gone:
	done++
}

#ifdef MUTANT_RECOVERS_THE_LIVING
#define TO_RECOVER(w) (crashes > 0 && life[w] == ALIVE && stopped[w] < THREADS_OF(w))
#elif defined(MUTANT_NO_RECOVERY)
#define TO_RECOVER(w) false
#else
/* waitpid returns when all threads are gone. */
#define TO_RECOVER(w) (life[w] == DEAD && stopped[w] == THREADS_OF(w))
#endif

proctype Supervisor()
{
	byte area;

end:
	do
	:: atomic {
			if
			:: TO_RECOVER(0) -> area = 0
#if WORKERS > 1
			:: TO_RECOVER(1) -> area = 1
#endif
#if WORKERS > 2
			:: TO_RECOVER(2) -> area = 2
#endif
			fi
		};
#ifdef MUTANT_RECOVERS_THE_LIVING
		crashes--;
#endif
#ifdef MUTANT_RESPAWNS_FIRST
		life[area] = ALIVE;
#endif
#ifndef MUTANT_FORGETS_READERS
		readers[area] = 0;
#endif
#ifndef MUTANT_FORGETS_WRITER
		atomic {
			if
#ifdef MUTANT_CLEARS_BLINDLY
			:: writer = 0
#else
			:: writer == area + 1 -> writer = 0
			:: else
#endif
			fi
		};
#endif
		gave_up[area] = false;
		waits[area] = false;
		end_turn(area);
#if !defined(MUTANT_RECOVERS_THE_LIVING) && !defined(MUTANT_RESPAWNS_FIRST)
		/* A new worker gets the area, or nobody does. */
		if
		:: d_step { life[area] = ALIVE; area = 0 }
		:: d_step { life[area] = VACANT; area = 0 }
		fi
#endif
	od
}

proctype Killer()
{
#define MAY_DIE(w) (crashes > 0 && life[w] == ALIVE && stopped[w] < THREADS_OF(w))
end:
	do
	:: atomic { MAY_DIE(0) -> crashes--; life[0] = DEAD }
#if WORKERS > 1
	:: atomic { MAY_DIE(1) -> crashes--; life[1] = DEAD }
#endif
#if WORKERS > 2
	:: atomic { MAY_DIE(2) -> crashes--; life[2] = DEAD }
#endif
	od
}

/* What holds at every moment: the slot is whole, and no acknowledged value is lost. (UNWATCHED
   leaves it to the readers to find out.) */
#ifndef UNWATCHED
#define WHOLE (low[current] == high[current])
#define KEPT (low[current] >= known)
#else
#define WHOLE true
#define KEPT true
#endif

/* What holds in the end: nobody has left the lock taken. One that was killed while it gave the
   turn may leave it to a worker that waits no more: the next that waits takes it over. */
#define NO_TURN (turn == 0 || crashes < CRASHES)
#if WORKERS > 2
#define FREE (writer == 0 && NO_TURN && readers[0] == 0 && readers[1] == 0 && readers[2] == 0)
#elif WORKERS > 1
#define FREE (writer == 0 && NO_TURN && readers[0] == 0 && readers[1] == 0)
#else
#define FREE (writer == 0 && NO_TURN && readers[0] == 0)
#endif

proctype Witness()
{
	byte bad;
end:
	if
	:: atomic { !WHOLE -> bad = 1; assert(false) }
	:: atomic { !KEPT -> bad = 2; assert(false) }
	:: atomic { done == ALL_THREADS && !FREE -> bad = 3; assert(false) }
	fi
}

init
{
	byte n = 0;
	atomic {
		do
		:: n < ALL_THREADS -> run Thread(n, AREA_OF(n)); n++
		:: else -> break
		od;
		run Supervisor();
		if
		:: crashes > 0 -> run Killer()
		:: else
		fi;
		run Witness()
	}
}
