package covey.core

import covey.core.client.Facts
import covey.core.client.RoundEvent
import covey.core.client.RoundState
import covey.core.client.Wishes
import covey.core.client.reduce
import covey.core.client.resume
import covey.core.wire.Assignment
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test

/** The reducer, state by state, and whole rounds with a process killed between any two of them. */
class RoundMachineTest {
    private val train = Assignment("train", 3, 0, 2, 600.0, 0.0)
    private val done = Assignment("done", 3, 0, 3, 0.0, 0.0)
    private val all = Wishes()

    @Test
    fun `an update that is pending goes first`() {
        assertEquals(RoundState.Uploading, resume(Facts(2, setOf(0), pending = true)))
        assertEquals(RoundState.CheckingIn, resume(Facts(2, setOf(0), pending = false)))
    }

    @Test
    fun `a new device measures where it begins`() {
        val path = walk(train, Facts(-1, emptySet(), false), all)
        val expected = listOf(
            RoundState.Fetching(0, train), RoundState.Evaluating(0, train), RoundState.Fetching(2, train),
            RoundState.Evaluating(2, train), RoundState.Training(train), RoundState.Uploading, RoundState.CheckingIn,
        )
        assertEquals(expected, path)
    }

    @Test
    fun `a version that is not due is not evaluated, the last one always is`() {
        val facts = Facts(2, setOf(0), false)
        assertEquals(RoundState.Training(train), reduce(RoundState.CheckingIn, RoundEvent.Assigned(train), facts, Wishes(evalEvery = 5)))
        assertEquals(RoundState.Fetching(3, done), reduce(RoundState.CheckingIn, RoundEvent.Assigned(done), facts, Wishes(evalEvery = 0)))
        val last = RoundState.Fetching(3, done)
        assertEquals(RoundState.Evaluating(3, done), reduce(last, RoundEvent.Done, Facts(3, setOf(0), false), Wishes(evalEvery = 0)))
        assertEquals(RoundState.Finished(3), reduce(RoundState.Evaluating(3, done), RoundEvent.Done, Facts(3, setOf(0, 3), false), all))
    }

    @Test
    fun `waiting, dropping and one round only`() {
        val facts = Facts(2, setOf(0, 2), false, uploaded = 1)
        val wait = Assignment("wait", 3, 0, 2, 0.0, 4.0)
        assertEquals(RoundState.Waiting(4.0), reduce(RoundState.CheckingIn, RoundEvent.Assigned(wait), facts, all))
        assertEquals(RoundState.CheckingIn, reduce(RoundState.Waiting(4.0), RoundEvent.Done, facts, all))
        assertEquals(RoundState.CheckingIn, reduce(RoundState.Training(train), RoundEvent.Dropped, facts, all))
        assertEquals(RoundState.Finished(2), reduce(RoundState.Uploading, RoundEvent.Done, facts, Wishes(once = true)))
        assertEquals(RoundState.CheckingIn, reduce(RoundState.Uploading, RoundEvent.Dropped, facts.copy(uploaded = 0), Wishes(once = true)))
    }

    @Test
    fun `killed between any two states it comes to the same end`() {
        val path = walk(train, Facts(-1, emptySet(), false), all).size
        for (killedAt in 0 until path) {
            var facts = Facts(-1, emptySet(), false)
            var state: RoundState = RoundState.CheckingIn
            var uploads = 0
            repeat(50) { at ->
                if (at == killedAt) state = resume(facts) // what is on disk is all that is left
                val event = if (state == RoundState.CheckingIn) RoundEvent.Assigned(if (uploads == 0) train else done) else RoundEvent.Done
                if (state == RoundState.Uploading) uploads++
                facts = after(state, facts)
                state = reduce(state, event, facts, all)
            }
            assertEquals(RoundState.Finished(3), state, "killed at $killedAt")
            assertEquals(1, uploads)
        }
    }

    /** The states from a check-in to the next. */
    private fun walk(assignment: Assignment, from: Facts, wishes: Wishes): List<RoundState> {
        var facts = from
        val path = ArrayList<RoundState>()
        var state = reduce(RoundState.CheckingIn, RoundEvent.Assigned(assignment), facts, wishes)
        while (path.lastOrNull() != RoundState.CheckingIn) {
            path += state
            facts = after(state, facts)
            state = reduce(state, RoundEvent.Done, facts, wishes)
        }
        return path
    }

    /** What is on disk after a state. */
    private fun after(state: RoundState, facts: Facts): Facts = when (state) {
        is RoundState.Fetching -> facts.copy(held = state.version)
        is RoundState.Evaluating -> facts.copy(evaluated = facts.evaluated + state.version)
        is RoundState.Training -> facts.copy(pending = true)
        is RoundState.Uploading -> facts.copy(pending = false, uploaded = facts.uploaded + 1)
        else -> facts
    }
}
