package covey.core.codec

import covey.core.PayloadException
import java.io.ByteArrayOutputStream
import java.util.zip.DataFormatException
import java.util.zip.Deflater
import java.util.zip.Inflater

/**
 * The token coder of docs/codec.md: any sequence of unsigned 32-bit numbers, small ones cheap. A number below 16 is its
 * own token; of a larger one the token keeps four leading bits, and the rest follow raw. Tokens are deflated with
 * Huffman codes only; raw bits are laid end to end, lowest first, and padded with zeros to a byte.
 */
internal object Tokens {
    private const val LAST = 239 // of 2^32 - 1

    /** The deflated tokens and the raw bits. */
    fun pack(numbers: IntArray): Pair<ByteArray, ByteArray> {
        val tokens = ByteArray(numbers.size) { token(numbers[it]).toByte() }
        val bits = BitWriter()
        for (v in numbers) if (v ushr 4 != 0) bits.write(v, width(token(v)))
        return deflate(tokens) to bits.bytes()
    }

    /** The [count] numbers; refuses, naming [what], whatever [pack] cannot write. */
    fun unpack(deflated: Section, raw: Section, count: Int, what: String): IntArray {
        val tokens = inflate(deflated, count, what)
        val top = tokens.maxOfOrNull { it.toInt() and 0xff } ?: 0
        if (top > LAST) throw PayloadException("$what hold the token $top; the highest is $LAST")
        checkRawLength(raw, tokens.sumOf { width(it.toInt() and 0xff).toLong() }, what)
        val bits = BitReader(raw)
        return IntArray(count) { number(tokens[it].toInt() and 0xff, bits) }
    }

    /** The token of one number, read as unsigned. */
    fun token(v: Int): Int {
        if (v ushr 4 == 0) return v
        val e = 31 - Integer.numberOfLeadingZeros(v)
        return ((e - 2) shl 3) or ((v ushr (e - 3)) and 7)
    }

    /** Raw bits that follow a token. */
    fun width(token: Int): Int = if (token < 16) 0 else (token shr 3) - 1

    private fun number(token: Int, bits: BitReader): Int {
        if (token < 16) return token
        val width = width(token)
        return ((8 or (token and 7)) shl width) or bits.read(width)
    }

    /** Raw DEFLATE of the bytes, Huffman codes only. */
    fun deflate(symbols: ByteArray): ByteArray {
        val coder = Deflater(6, true)
        try {
            coder.setStrategy(Deflater.HUFFMAN_ONLY)
            coder.setInput(symbols)
            coder.finish()
            val out = ByteArrayOutputStream(symbols.size / 2 + 64)
            val piece = ByteArray(1 shl 15)
            while (!coder.finished()) out.write(piece, 0, coder.deflate(piece))
            return out.toByteArray()
        } finally {
            coder.end()
        }
    }

    /** Exactly [count] bytes out of exactly [data]; a bomb is stopped after one byte too many. */
    fun inflate(data: Section, count: Int, what: String): ByteArray {
        val decoder = Inflater(true)
        try {
            decoder.setInput(data.bytes, data.from, data.size)
            val out = ByteArray(count + 1)
            var got = 0
            while (got <= count && !decoder.finished()) {
                val piece = decoder.inflate(out, got, out.size - got)
                if (piece == 0 && (decoder.needsInput() || decoder.needsDictionary())) break
                got += piece
            }
            if (got != count) {
                val more = if (got > count) "more than $count" else "only $got"
                throw PayloadException("$what hold $more symbols instead of $count")
            }
            if (!decoder.finished() || decoder.remaining != 0) {
                throw PayloadException("$what do not end where their section ends")
            }
            return out.copyOf(count)
        } catch (_: DataFormatException) {
            throw PayloadException("$what are not valid DEFLATE data")
        } finally {
            decoder.end()
        }
    }

    private fun checkRawLength(raw: Section, bits: Long, what: String) {
        val needed = (bits + 7) / 8
        if (raw.size.toLong() != needed) {
            throw PayloadException("$what need $needed bytes of raw bits, ${raw.size} were sent")
        }
        val used = (bits % 8).toInt()
        if (used != 0 && (raw[raw.size - 1] ushr used) != 0) {
            throw PayloadException("$what end with padding bits that are not zero")
        }
    }
}

/** Bits laid end to end, each number's lowest first. */
private class BitWriter {
    private val out = ByteArrayOutputStream()
    private var held = 0L
    private var count = 0

    /** The low [width] bits of [v], at most 28. */
    fun write(v: Int, width: Int) {
        held = held or ((v.toLong() and ((1L shl width) - 1)) shl count)
        count += width
        while (count >= 8) {
            out.write(held.toInt() and 0xff)
            held = held ushr 8
            count -= 8
        }
    }

    fun bytes(): ByteArray {
        if (count > 0) out.write(held.toInt() and 0xff)
        held = 0
        count = 0
        return out.toByteArray()
    }
}

private class BitReader(private val raw: Section) {
    private var at = 0
    private var held = 0L
    private var count = 0

    fun read(width: Int): Int {
        while (count < width) {
            held = held or (raw[at++].toLong() shl count)
            count += 8
        }
        val v = (held and ((1L shl width) - 1)).toInt()
        held = held ushr width
        count -= width
        return v
    }
}
