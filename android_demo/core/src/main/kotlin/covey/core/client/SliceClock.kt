package covey.core.client

import covey.core.StoppedException
import kotlin.math.min

/**
 * The clock of a piece of background work that the system may end at any time and that must not sit and wait: it throws
 * [StoppedException] when [stopped] says so, when [limitS] seconds are over, and instead of any wait longer than
 * [longestWaitS], with the seconds after which the work should be taken up again.
 */
class SliceClock(private val limitS: Double, private val longestWaitS: Double, private val stopped: () -> Boolean) : Clock {
    private val started = seconds()

    override fun seconds(): Double = System.nanoTime() * 1e-9

    override fun sleep(seconds: Double) {
        if (stopped()) throw StoppedException(0.0)
        if (seconds > longestWaitS || seconds() - started + seconds > limitS) throw StoppedException(seconds)
        val until = seconds() + seconds
        while (seconds() < until) {
            Thread.sleep((1000 * min(0.2, until - seconds())).toLong().coerceAtLeast(1))
            if (stopped()) throw StoppedException(until - seconds())
        }
    }
}
