package covey.core.client

import covey.core.wire.Assignment

/** Where a device stands in the task. Each state names the one thing to do in it. */
sealed interface RoundState {
    /** Ask the server what to do. */
    data object CheckingIn : RoundState

    /** Come to this version of the adapter. */
    data class Fetching(val version: Int, val then: Assignment) : RoundState

    /** Measure the held-out loss of the version that is held, and report it. */
    data class Evaluating(val version: Int, val then: Assignment) : RoundState

    /** Train the version that is held, encode the change, keep it as pending. */
    data class Training(val assignment: Assignment) : RoundState

    /** Send what is pending until the server has acknowledged or refused it. */
    data object Uploading : RoundState

    /** Do nothing for a while. */
    data class Waiting(val seconds: Double) : RoundState

    /** The end: of the task, or of what was wished for. */
    data class Finished(val version: Int) : RoundState
}

/** What happened in a state. What it changed is on disk already, and in the [Facts] that come with it. */
sealed interface RoundEvent {
    /** The server's word. */
    data class Assigned(val assignment: Assignment) : RoundEvent

    /** What the state asked for is done. */
    data object Done : RoundEvent

    /** It did not come to pass: refused by the server, or the round's deadline is over. Check in again. */
    data object Dropped : RoundEvent
}

/** What decisions depend on besides the state; all of it can be read off the disk. [uploaded]: since this process started. */
data class Facts(val held: Int, val evaluated: Set<Int>, val pending: Boolean, val uploaded: Int = 0)

/** What the person asked for: evaluate every so many versions (0 = only the first and the last), one round only. */
data class Wishes(val evalEvery: Int = 1, val once: Boolean = false)

/**
 * Where a process begins, whatever killed the one before it: an unacknowledged update goes first, for the server counts
 * it or says why not before it gives new work. A round in progress is found again by its assignment, which the server
 * repeats.
 */
fun resume(facts: Facts): RoundState = if (facts.pending) RoundState.Uploading else RoundState.CheckingIn

/** The next state: a pure function of the state, what happened in it, and what is on disk. */
fun reduce(state: RoundState, event: RoundEvent, facts: Facts, wishes: Wishes): RoundState = when {
    event is RoundEvent.Assigned -> follow(event.assignment, facts, wishes)
    event is RoundEvent.Dropped -> resume(facts)
    state is RoundState.Fetching -> follow(state.then, facts, wishes)
    state is RoundState.Evaluating -> follow(state.then, facts, wishes)
    state is RoundState.Finished -> state
    wishes.once && facts.uploaded > 0 && !facts.pending -> RoundState.Finished(facts.held)
    else -> resume(facts)
}

/** What is still to be done of an assignment. */
private fun follow(assignment: Assignment, facts: Facts, wishes: Wishes): RoundState {
    if (assignment.action == "wait") return RoundState.Waiting(maxOf(0.0, assignment.retryAfterS))
    if (0 !in facts.evaluated) { // where the device begins: what is learnt is measured against it
        return if (facts.held == 0) RoundState.Evaluating(0, assignment) else RoundState.Fetching(0, assignment)
    }
    val version = assignment.version
    if (facts.held != version) return RoundState.Fetching(version, assignment)
    val done = assignment.action == "done"
    val due = done || (wishes.evalEvery > 0 && version % wishes.evalEvery == 0)
    if (due && version !in facts.evaluated) return RoundState.Evaluating(version, assignment)
    return if (done) RoundState.Finished(version) else RoundState.Training(assignment)
}
