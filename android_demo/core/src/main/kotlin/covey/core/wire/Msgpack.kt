package covey.core.wire

import covey.core.MessageException
import java.io.ByteArrayOutputStream
import java.io.DataOutputStream
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction
import java.util.Locale

/*
 * The part of msgpack that the protocol uses, by hand: about a hundred lines, in place of a library that would be the
 * only one of :core (and that loads classes by reflection, which an app's shrinker would have to be told about).
 */

/** Writes the shortest form of each value, as Python's msgpack does. */
internal class MsgpackWriter {
    private val bytes = ByteArrayOutputStream()
    private val out = DataOutputStream(bytes)

    fun mapHeader(count: Int) = header(count, 0x80, 15, 0, 0xde)
    fun listHeader(count: Int) = header(count, 0x90, 15, 0, 0xdc)

    fun value(value: Any?) {
        when (value) {
            null -> out.writeByte(0xc0)
            is Boolean -> out.writeByte(if (value) 0xc3 else 0xc2)
            is Int -> whole(value.toLong())
            is Long -> whole(value)
            is Double -> { out.writeByte(0xcb); out.writeDouble(value) }
            is String -> value.toByteArray().let { header(it.size, 0xa0, 31, 0xd9, 0xda); out.write(it) }
            is ByteArray -> { header(value.size, 0, -1, 0xc4, 0xc5); out.write(value) }
            else -> throw IllegalArgumentException("${value.javaClass.simpleName} has no place in a message")
        }
    }

    private fun whole(v: Long) {
        when {
            v >= 0 -> when {
                v < 0x80 -> out.writeByte(v.toInt())
                v <= 0xff -> { out.writeByte(0xcc); out.writeByte(v.toInt()) }
                v <= 0xffff -> { out.writeByte(0xcd); out.writeShort(v.toInt()) }
                v <= 0xffffffffL -> { out.writeByte(0xce); out.writeInt(v.toInt()) }
                else -> { out.writeByte(0xcf); out.writeLong(v) }
            }
            v >= -32 -> out.writeByte(v.toInt())
            v >= -0x80 -> { out.writeByte(0xd0); out.writeByte(v.toInt()) }
            v >= -0x8000 -> { out.writeByte(0xd1); out.writeShort(v.toInt()) }
            v >= Int.MIN_VALUE -> { out.writeByte(0xd2); out.writeInt(v.toInt()) }
            else -> { out.writeByte(0xd3); out.writeLong(v) }
        }
    }

    /** A length: within the type's own byte up to [fixed], else behind [one] (if any), [two], or the type after that. */
    private fun header(count: Int, base: Int, fixed: Int, one: Int, two: Int) {
        when {
            count <= fixed -> out.writeByte(base or count)
            one != 0 && count <= 0xff -> { out.writeByte(one); out.writeByte(count) }
            count <= 0xffff -> { out.writeByte(two); out.writeShort(count) }
            else -> { out.writeByte(two + 1); out.writeInt(count) }
        }
    }

    fun toByteArray(): ByteArray = bytes.toByteArray()
}

/**
 * Reads msgpack bounded by its own length: nothing is allocated that the bytes at hand do not fill, containers are
 * opened only where the caller asks for one, extensions are refused.
 */
internal class MsgpackReader(private val data: ByteArray, private val what: String) {
    private var at = 0
    private var items = 0L

    val left: Int get() = data.size - at

    fun mapHeader(): Long = container(0x80, 0xde, "a map")
    fun listHeader(): Long = container(0x90, 0xdc, "a list")

    private fun container(base: Int, two: Int, name: String): Long {
        val type = u8()
        val count = when {
            type and 0xf0 == base -> (type and 15).toLong()
            type == two -> number(2)
            type == two + 1 -> number(4)
            else -> invalid("$name is expected")
        }
        items += count
        if (items > MAX_ALL) throw MessageException("the message has more than ${"%,d".format(Locale.ROOT, MAX_ALL)} items in all")
        return count
    }

    /** A scalar: null, Boolean, Long, Double, String or ByteArray. */
    fun value(): Any? {
        val type = u8()
        return when {
            type < 0x80 -> type.toLong()
            type >= 0xe0 -> (type - 0x100).toLong()
            type and 0xe0 == 0xa0 -> text((type and 31).toLong())
            else -> when (type) {
                0xc0 -> null
                0xc2 -> false
                0xc3 -> true
                0xc4, 0xc5, 0xc6 -> take(number(1 shl (type - 0xc4)))
                0xca -> ByteBuffer.wrap(take(4)).float.toDouble()
                0xcb -> ByteBuffer.wrap(take(8)).double
                0xcc, 0xcd, 0xce -> number(1 shl (type - 0xcc))
                0xcf -> signed(8).also { if (it < 0) invalid("a number above 2^63") }
                0xd0, 0xd1, 0xd2, 0xd3 -> signed(1 shl (type - 0xd0))
                0xd9, 0xda, 0xdb -> text(number(1 shl (type - 0xd9)))
                else -> invalid("a container or extension where a plain value belongs")
            }
        }
    }

    private fun text(length: Long): String {
        if (length > MAX_TEXT) invalid("a text of $length bytes")
        val decoder = Charsets.UTF_8.newDecoder()
            .onMalformedInput(CodingErrorAction.REPORT).onUnmappableCharacter(CodingErrorAction.REPORT)
        try {
            return decoder.decode(ByteBuffer.wrap(take(length))).toString()
        } catch (_: CharacterCodingException) {
            invalid("a text that is not UTF-8")
        }
    }

    private fun u8(): Int = if (at < data.size) data[at++].toInt() and 0xff else invalid("it ends early")

    private fun number(bytes: Int): Long = (0 until bytes).fold(0L) { sum, _ -> (sum shl 8) or u8().toLong() }

    private fun signed(bytes: Int): Long = number(bytes).let { (it shl (64 - 8 * bytes)) shr (64 - 8 * bytes) }

    private fun take(length: Long): ByteArray {
        if (length > left) invalid("it ends early")
        at += length.toInt()
        return data.copyOfRange(at - length.toInt(), at)
    }

    private fun invalid(why: String): Nothing =
        throw MessageException("not a valid $what message: $why near byte ${minOf(at, data.size)}")

    companion object {
        /** Bytes of any string. */
        const val MAX_TEXT = 65_536

        /** Items of all lists and maps together: what a message weighs in memory is bounded, not only its length. */
        const val MAX_ALL = 131_072L
    }
}
