package covey.core.codec

import covey.core.CodecException
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.max
import kotlin.math.sqrt

/**
 * LVL1, the packed format of every coordinate of a run in a few bits, as docs/codec.md has it: one step for the whole
 * vector, base and top for each frame, levels as digits of base 2 top + 1, several to a byte.
 */
object Lvl1 {
    private const val MAGIC = "LVL1"
    private const val HEADER = 32
    private const val FRAME_HEADER = 24
    internal const val MAX_TOP = 127
    private const val MAX_EXCESS = 1 shl 28
    private const val SAMPLE = 1 shl 16
    private val TINY = Float.fromBits((127 - 100) shl 23) // 2^-100: below it everything is sent as zero
    private val HUGE = Float.fromBits((127 + 120) shl 23) // 2^120: above it a value could overflow

    /** No payload of so many coordinates is longer. */
    fun maxBytes(entries: Int): Long =
        HEADER + (entries + FRAME - 1L) / FRAME * (FRAME_HEADER + 256) + ceil(4.5 * entries).toLong()

    /** The payload of a contiguous run; [error] is the relative L2 error that it may make, 0.001 to 0.95. */
    fun encode(entries: Entries, layoutId: Int, error: Double): ByteArray {
        val run = entries.where as? Where.Run
            ?: throw CodecException("the stage levels takes whole vectors and segments; after topk use pack")
        val (step, frames) = quantise(entries.values, error)
        val head = Header(HEADER).text(MAGIC).u16(FORMAT_VERSION).u16(0).u32(entries.size).u32(entries.count)
            .u32(layoutId).u32(run.start).f32(step)
        return concatenated(listOf(head.sealed()) + frames.map { it.packed() })
    }

    private fun quantise(v: FloatArray, error: Double): Pair<Float, List<LevelFrame>> {
        val top = v.maxOfOrNull { abs(it) } ?: 0f
        if (top >= HUGE) throw CodecException("the vector holds a magnitude of $top; the stage levels takes less than $HUGE")
        val pieces = (0 until v.size step FRAME).map { v.copyOfRange(it, minOf(it + FRAME, v.size)) }
        if (top < TINY) return 0f to pieces.map { LevelFrame(it, IntArray(it.size), 0f, 0.0) }
        val allowed = error * error * v.sumOf { it.toDouble() * it }
        var step = fitStep(v, top.toDouble(), allowed)
        while (true) {
            val frames = pieces.map { LevelFrame.of(it, step) }
            val lost = frames.sumOf { it.lost }
            if (lost <= allowed) return step to frames
            step *= (0.995 * sqrt(allowed / lost)).toFloat()
        }
    }

    /** The largest step whose error on a sample stays within bounds: bisection, for the error grows with the step. */
    private fun fitStep(v: FloatArray, top: Double, allowed: Double): Float {
        val stride = (v.size / SAMPLE) or 1
        val sample = FloatArray((v.size + stride - 1) / stride) { v[it * stride] }
        val share = allowed * sample.size / v.size
        val fine = sqrt(12 * allowed / v.size)
        var low = ln(0.25 * fine)
        var high = ln(max(2 * top, fine))
        repeat(11) {
            val middle = (low + high) / 2
            if (LevelFrame.of(sample, exp(middle).toFloat()).lost <= share) low = middle else high = middle
        }
        return exp(low).toFloat()
    }

    /** The run; throws [covey.core.PayloadException] for any byte that should not be there. */
    fun decode(payload: ByteArray, size: Int, layoutId: Int, maxEntries: Int = size): Entries {
        val count = openHeader(payload, MAGIC, HEADER, size, layoutId, minOf(size, maxEntries))
        val fields = Fields(payload, 20, 8)
        val first = fields.u32()
        val step = fields.f32()
        if (first + count > size) {
            refuse("the payload holds ${grouped(count)} coordinates from ${grouped(first)} on; the vector has ${grouped(size)}")
        }
        checkScale("the step of the payload", step)
        val values = FloatArray(count)
        var at = HEADER
        for (number in 0 until (count + FRAME - 1) / FRAME) {
            val frame = openFrame(payload, at, FRAME_HEADER, lengthsAt = 4, sections = 3, number)
            decodeFrame(frame, minOf(FRAME, count - number * FRAME), step, "frame $number").copyInto(values, number * FRAME)
            at = frame.end
        }
        checkEnd(payload, at)
        return Entries(size, Where.Run(first.toInt(), first.toInt() + count), values)
    }

    private fun decodeFrame(frame: Frame, count: Int, step: Float, where: String): FloatArray {
        val top = frame.header.u32()
        frame.header.skip(12)
        val base = frame.header.f32()
        val (p, q, r) = frame.sections
        if (top > MAX_TOP || !base.isFinite()) {
            refuse("$where has top $top and base ${shown(base)}; top is at most $MAX_TOP, base finite")
        }
        if (top == 0L) {
            val bytes = p.size + q.size + r.size
            if (bytes > 0) refuse("$where has top 0, so no sections, but $bytes bytes of them")
            return FloatArray(count)
        }
        val digits = Digits.split(p, count, top.toInt(), where)
        val values = FloatArray(2 * top.toInt() + 1) { value(it.toLong(), base, step, where) }
        val out = FloatArray(count) { values[digits[it]] }
        if (q.size > 0 || r.size > 0) addExcesses(out, digits, top.toInt(), q, r, where) { value(it, base, step, where) }
        return out
    }

    private inline fun addExcesses(
        out: FloatArray, digits: IntArray, top: Int, q: Section, r: Section, where: String, value: (Long) -> Float,
    ) {
        val large = digits.indices.filter { digits[it] >= 2 * top - 1 }
        val excess = Tokens.unpack(q, r, large.size, "the excesses of $where")
        if (excess.any { it.toLong() and 0xffffffffL > MAX_EXCESS }) refuse("$where holds an excess above 2^28")
        large.forEachIndexed { i, at -> out[at] = value(digits[at] + 2L * excess[i]) }
    }

    /** What a signed level stands for: 0 -> 0, 2m - 1 -> m step + base, 2m -> the negative. */
    private fun value(signed: Long, base: Float, step: Float, where: String): Float {
        val scaled = ((signed + 1) shr 1).toFloat() * step
        val magnitude = scaled + base
        if (!magnitude.isFinite()) refuse("$where holds a level that is not finite; only finite numbers are accepted")
        return if (signed == 0L) 0f else if (signed and 1L == 1L) magnitude else -magnitude
    }
}
