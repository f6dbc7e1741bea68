package covey.core.codec

import covey.core.PayloadException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Locale
import java.util.zip.CRC32

/** What the two packed formats share: a sealed header, and frames of sections behind sealed headers of theirs. */
internal const val FRAME = 65_536

internal const val FORMAT_VERSION = 1

/** A part of a byte array, read in place. */
internal class Section(val bytes: ByteArray, val from: Int, val to: Int) {
    val size: Int get() = to - from

    /** Byte [i] as 0 to 255. */
    operator fun get(i: Int): Int = bytes[from + i].toInt() and 0xff

    fun buffer(): ByteBuffer = ByteBuffer.wrap(bytes, from, size).slice().order(ByteOrder.LITTLE_ENDIAN)
}

/** A header's fields one after the other, little-endian. */
internal class Fields(bytes: ByteArray, at: Int, length: Int) {
    private val buffer = ByteBuffer.wrap(bytes, at, length).slice().order(ByteOrder.LITTLE_ENDIAN)

    fun u16(): Int = buffer.short.toInt() and 0xffff
    fun u32(): Long = buffer.int.toLong() and 0xffffffffL
    fun f32(): Float = buffer.float
    fun skip(count: Int) { buffer.position(buffer.position() + count) }
}

/** A little-endian header in the making; [sealed] ends it. */
internal class Header(size: Int) {
    private val buffer = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)

    fun text(magic: String) = apply { buffer.put(magic.toByteArray()) }
    fun u16(v: Int) = apply { buffer.putShort(v.toShort()) }
    fun u32(v: Int) = apply { buffer.putInt(v) }
    fun f32(v: Float) = apply { buffer.putFloat(v) }

    /** The header, the CRC-32 of it and of what follows, and what follows. */
    fun sealed(vararg body: ByteArray): ByteArray {
        val crc = CRC32()
        crc.update(buffer.array(), 0, buffer.position())
        for (part in body) crc.update(part)
        buffer.putInt(crc.value.toInt())
        return concatenated(listOf(buffer.array()) + body)
    }
}

internal fun concatenated(parts: List<ByteArray>): ByteArray {
    val out = ByteArray(parts.sumOf { it.size })
    var at = 0
    for (part in parts) {
        part.copyInto(out, at)
        at += part.size
    }
    return out
}

/** Checks a payload's header of [length] bytes and gives how many entries it announces, at most [limit]. */
internal fun openHeader(payload: ByteArray, magic: String, length: Int, size: Int, layoutId: Int, limit: Int): Int {
    if (payload.size < length) refuse("the payload has ${payload.size} bytes; its header alone has $length")
    if (!magic.toByteArray().contentEquals(payload.copyOf(4))) {
        refuse("the payload begins with ${printable(payload.copyOf(4))} instead of b'$magic'")
    }
    val fields = Fields(payload, 4, length - 4)
    val version = fields.u16()
    val flags = fields.u16()
    val n = fields.u32()
    val entries = fields.u32()
    val layout = fields.u32()
    val sealAt = length - 4
    if (crc(payload, 0, sealAt) != Fields(payload, sealAt, 4).u32()) {
        refuse("the payload's header does not match its checksum; it was damaged on the way")
    }
    if (version != FORMAT_VERSION || flags != 0) {
        refuse("the payload has version $version and flags $flags; this side reads version 1 without flags")
    }
    if (n != size.toLong()) refuse("the payload is for a vector of ${grouped(n)} entries; this task's has ${grouped(size)}")
    if (layout.toInt() != layoutId) {
        refuse("the payload is for layout %08x; this task has layout %08x".format(Locale.ROOT, layout.toInt(), layoutId))
    }
    if (entries > limit) {
        refuse("the payload claims ${grouped(entries)} entries; at most ${grouped(limit)} are accepted", 413)
    }
    return entries.toInt()
}

/** One frame: where its header begins, its sections, and where it ends. */
internal class Frame(val header: Fields, val sections: List<Section>, val end: Int)

/** Opens the frame at [at], whose header has [length] bytes and the lengths of [sections] sections at [lengthsAt]. */
internal fun openFrame(payload: ByteArray, at: Int, length: Int, lengthsAt: Int, sections: Int, number: Int): Frame {
    val left = payload.size - at - length
    if (left < 0) refuse("the payload ends inside the header of frame $number")
    val lengths = Fields(payload, at + lengthsAt, 4 * sections).let { f -> List(sections) { f.u32() } }
    val claimed = lengths.sum() // four numbers of 32 bits: no overflow in 64
    if (claimed > left) {
        refuse("frame $number claims ${grouped(claimed)} bytes of sections; ${grouped(left)} are left")
    }
    val body = at + length
    val end = body + claimed.toInt()
    val crc = CRC32()
    crc.update(payload, at, length - 4)
    crc.update(payload, body, end - body)
    if (crc.value != Fields(payload, body - 4, 4).u32()) {
        refuse("frame $number does not match its checksum; it was damaged on the way")
    }
    val ends = lengths.runningFold(body) { sum, more -> sum + more.toInt() }
    return Frame(Fields(payload, at, length), ends.zipWithNext { i, j -> Section(payload, i, j) }, end)
}

/** Refuses a base or step that is negative, minus zero included, or not finite. */
internal fun checkScale(what: String, x: Float) {
    if (!x.isFinite() || x.toRawBits() < 0) refuse("$what is ${shown(x)}; it must be finite and not negative")
}

internal fun checkEnd(payload: ByteArray, at: Int) {
    if (at != payload.size) refuse("${payload.size - at} bytes are left over after the last frame")
}

internal fun refuse(sentence: String, status: Int = 400): Nothing = throw PayloadException(sentence, status)

internal fun crc(bytes: ByteArray, from: Int, to: Int): Long = CRC32().apply { update(bytes, from, to - from) }.value

internal fun grouped(n: Number): String = "%,d".format(Locale.ROOT, n.toLong())

/** A number as the server's sentences write it. */
internal fun shown(x: Float): String = when {
    x.isNaN() -> "nan"
    x.isInfinite() -> if (x > 0) "inf" else "-inf"
    else -> x.toString()
}

private fun printable(bytes: ByteArray): String = bytes.joinToString("", "b'", "'") { byte ->
    val c = byte.toInt() and 0xff
    if (c in 32..126) c.toChar().toString() else "\\x%02x".format(Locale.ROOT, c)
}
