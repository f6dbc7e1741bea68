package covey.core.codec

import kotlin.math.ceil
import kotlin.math.ln

/**
 * SPK1, the packed format of some entries of a vector, byte for byte as docs/codec.md has it: a header, then frames of
 * 65,536 entries with their own value codec, scale and checksum. The decoder checks everything before it returns
 * anything; its time and memory are bounded by the payload's length and by how many entries the receiver takes.
 */
object Spk1 {
    private const val MAGIC = "SPK1"
    private const val HEADER = 24
    private const val FRAME_HEADER = 40

    /** No payload of so many entries of a vector of [size] is longer, whatever lies in it. */
    fun maxBytes(entries: Int, size: Int, mode: String): Long {
        val frames = (entries + FRAME - 1) / FRAME
        val index = if (entries > 0) 1 + ln(size.toDouble() / entries) / ln(2.0) / 8 else 0.0
        return HEADER + frames.toLong() * (FRAME_HEADER + 128 + 16) +
            ceil((index + Values.MAX_BYTES.getValue(mode)) * entries).toLong()
    }

    /** The payload. Values must be finite; [mode] is f32, f16, lev, sign or auto. */
    fun encode(entries: Entries, layoutId: Int, mode: String = "auto", error: Double = 0.1): ByteArray {
        val head = Header(HEADER).text(MAGIC).u16(FORMAT_VERSION).u16(0).u32(entries.size).u32(entries.count).u32(layoutId)
        val frames = (0 until entries.count step FRAME).map { encodeFrame(entries, it, mode, error) }
        return concatenated(listOf(head.sealed()) + frames)
    }

    private fun encodeFrame(entries: Entries, at: Int, mode: String, error: Double): ByteArray {
        val stop = minOf(at + FRAME, entries.count)
        val coded = Values.encode(entries.values.copyOfRange(at, stop), mode, error)
        val first = entries.index(at)
        val (a, b) = if (entries.index(stop - 1) - first == stop - at - 1) {
            ByteArray(0) to ByteArray(0)
        } else {
            Tokens.pack(IntArray(stop - at) { if (it == 0) 0 else entries.index(at + it) - entries.index(at + it - 1) - 1 })
        }
        return Header(FRAME_HEADER).u32(coded.codec).u32(first).u32(stop - at)
            .u32(a.size).u32(b.size).u32(coded.p.size).u32(coded.q.size).f32(coded.base).f32(coded.step)
            .sealed(a, b, coded.p, coded.q)
    }

    /** The entries of a vector of [size]; throws [covey.core.PayloadException] for any byte that should not be there. */
    fun decode(payload: ByteArray, size: Int, layoutId: Int, maxEntries: Int = size): Entries {
        val count = openHeader(payload, MAGIC, HEADER, size, layoutId, minOf(size, maxEntries))
        val frames = readFrames(payload, size, count)
        val values = FloatArray(count)
        if (frames.all { it.contiguous } && frames.zipWithNext().all { (f, g) -> f.first + f.count == g.first }) {
            for (frame in frames) frame.values().copyInto(values, frame.number * FRAME)
            val first = frames.firstOrNull()?.first ?: 0
            return Entries(size, Where.Run(first, first + count), values)
        }
        val where = IntArray(count)
        for (frame in frames) {
            frame.indices(size).copyInto(where, frame.number * FRAME)
            frame.values().copyInto(values, frame.number * FRAME)
        }
        checkOrder(where)
        return Entries(size, Where.Indices(where), values)
    }

    private fun readFrames(payload: ByteArray, size: Int, count: Int): List<PackedFrame> {
        val frames = ArrayList<PackedFrame>()
        var at = HEADER
        for (number in 0 until (count + FRAME - 1) / FRAME) {
            val opened = openFrame(payload, at, FRAME_HEADER, lengthsAt = 12, sections = 4, number)
            val frame = PackedFrame.read(number, opened, minOf(FRAME, count - number * FRAME), size)
            if (frames.isNotEmpty() && frame.first < frames.last().first + frames.last().count) overlap(number, frame.first)
            frames += frame
            at = opened.end
        }
        checkEnd(payload, at)
        return frames
    }

    private fun checkOrder(where: IntArray) {
        for (at in FRAME until where.size step FRAME) if (where[at] <= where[at - 1]) overlap(at / FRAME, where[at])
    }

    private fun overlap(number: Int, index: Int): Nothing =
        refuse("frame $number begins at index ${grouped(index)}, inside the frame before it")
}

/** A frame whose structure and checksum are right, its sections still packed. */
private class PackedFrame(
    val number: Int, val first: Int, val count: Int, val codec: Int, val base: Float, val step: Float,
    val sections: List<Section>,
) {
    val contiguous: Boolean get() = sections[0].size == 0

    fun values(): FloatArray = Values.decode(codec, base, step, sections[2], sections[3], count, "frame $number")

    /** Ascending and below [size]. */
    fun indices(size: Int): IntArray {
        if (contiguous) return IntArray(count) { first + it }
        val gaps = Tokens.unpack(sections[0], sections[1], count, "the gaps of frame $number")
        if (gaps[0] != 0) {
            refuse("frame $number begins with a gap of ${grouped(gaps[0].toLong() and 0xffffffffL)} instead of 0")
        }
        val last = first + gaps.sumOf { it.toLong() and 0xffffffffL } + count - 1
        if (last >= size) refuse("frame $number reaches index ${grouped(last)}; the vector has ${grouped(size)} entries")
        var at = first
        return IntArray(count) { at += gaps[it] + if (it == 0) 0 else 1; at }
    }

    companion object {
        fun read(number: Int, frame: Frame, expected: Int, size: Int): PackedFrame {
            val codec = frame.header.u32()
            val first = frame.header.u32()
            val count = frame.header.u32()
            frame.header.skip(16)
            val base = frame.header.f32()
            val step = frame.header.f32()
            if (codec > Values.SIGN) refuse("frame $number has the unknown value codec $codec; known are 0 to 3")
            if (count != expected.toLong()) {
                refuse("frame $number has ${grouped(count)} entries, expected ${grouped(expected)}")
            }
            checkScale("the base of frame $number", base)
            checkScale("the step of frame $number", step)
            if (frame.sections[1].size > 0 && frame.sections[0].size == 0) {
                refuse("frame $number has raw bits of gaps but no gaps")
            }
            if (first + count > size) {
                refuse("frame $number begins at index ${grouped(first)}; the vector has ${grouped(size)} entries")
            }
            return PackedFrame(number, first.toInt(), expected, codec.toInt(), base, step, frame.sections)
        }
    }
}
