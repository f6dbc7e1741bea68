package covey.core

import covey.core.client.ClientEvent
import covey.core.client.Cost
import covey.core.client.Overview
import covey.core.client.Phase
import covey.core.client.SliceClock
import covey.core.client.fitsMemory
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** What a screen shows, event by event, and the clock of a job. */
class OverviewTest {
    @Test
    fun `a round as a screen sees it`() {
        val events = listOf(
            ClientEvent.Joined("notes", "tiny", 40, 10), ClientEvent.Round(3, 16, 2), ClientEvent.Version(2, 900), ClientEvent.Evaluated(0, 1.5),
            ClientEvent.Evaluated(2, 1.2), ClientEvent.Stepped(3, 4, 20, 1.1), ClientEvent.Trained(3, 1.2, 1.0, 700),
        )
        val shown = events.fold(Overview()) { view, event -> view.after(event) }
        assertEquals(Phase.UPLOADING, shown.phase)
        assertEquals(listOf(3, 16, 4, 20, 0), listOf(shown.round, shown.rounds, shown.step, shown.steps, shown.updates))
        assertEquals(-0.2, shown.change!!, 1e-9)
        val after = shown.after(ClientEvent.Uploaded(3, 700, "accepted"))
        assertEquals(1, after.updates)
        assertEquals(after, Overview.fromBytes(after.toBytes()))
        assertEquals(Phase.FINISHED, after.after(ClientEvent.Finished(16, 1.5, 0.9)).phase)
        assertNull(Overview().change)
    }

    @Test
    fun `what is wrong is said, and goes away when it works again`() {
        val wrong = Overview().failed("no server answers")
        assertEquals(Phase.PROBLEM to "no server answers", wrong.phase to wrong.sentence)
        assertEquals("", wrong.after(ClientEvent.Round(1, 2, 0)).sentence)
        assertEquals("the round is closed", Overview().after(ClientEvent.Refused(2, "the round is closed")).sentence)
    }

    @Test
    fun `a person is asked with the sizes`() {
        val cost = Cost("tiny", 6_000_000, 100_000_000)
        val asked = Overview().asking(cost)
        assertEquals(listOf(6_000_000L, 100_000_000L), listOf(asked.downloadBytes, asked.memoryBytes))
        assertTrue(fitsMemory(cost, 120_000_000) && !fitsMemory(cost, 105_000_000))
        assertEquals(0.25, Overview().downloading(1, 4).share)
    }

    @Test
    fun `a slice does not sit and wait`() {
        val clock = SliceClock(limitS = 100.0, longestWaitS = 1.0) { false }
        clock.sleep(0.01)
        assertEquals(30.0, assertThrows(StoppedException::class.java) { clock.sleep(30.0) }.laterS)
        val over = SliceClock(limitS = 0.0, longestWaitS = 1.0) { false }
        Thread.sleep(2)
        assertThrows(StoppedException::class.java) { over.sleep(0.0) }
        var stop = false
        val stopped = SliceClock(100.0, 5.0) { stop }
        Thread { Thread.sleep(50); stop = true }.start()
        assertTrue(assertThrows(StoppedException::class.java) { stopped.sleep(4.0) }.laterS > 1)
    }
}
