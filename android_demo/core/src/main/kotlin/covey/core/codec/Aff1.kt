package covey.core.codec

import covey.core.CodecException
import covey.core.model.Layout
import covey.core.model.Tensor
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.CRC32
import kotlin.math.abs

/**
 * AFF1, the packed format of whole vectors in 8, 4 or 2 bits an entry: each slice of dimension 0 with a scale and an
 * offset (FLoCoRA), as docs/codec.md has it. A tensor of one dimension stays float32.
 */
object Aff1 {
    private const val MAGIC = "AFF1"
    private const val HEADER = 32
    private val HUGE = Float.fromBits((127 + 120) shl 23)

    /** Bytes of every payload of this layout. */
    fun maxBytes(layout: Layout, bits: Int): Long = HEADER + layout.tensors.sumOf { bytesOf(it, bits) }

    /** The payload of a whole vector. */
    fun encode(vector: FloatArray, layout: Layout, bits: Int): ByteArray {
        val body = ByteBuffer.allocate((maxBytes(layout, bits) - HEADER).toInt()).order(ByteOrder.LITTLE_ENDIAN)
        layout.tensors.forEachIndexed { i, tensor -> encodeTensor(body, vector, layout.offsets[i], tensor, bits) }
        val crc = CRC32().apply { update(body.array()) }.value.toInt()
        val head = Header(HEADER).text(MAGIC).u16(FORMAT_VERSION).u16(0).u32(layout.size).u32(layout.size)
            .u32(layout.shortId).u32(bits).u32(crc)
        return head.sealed() + body.array()
    }

    private fun encodeTensor(out: ByteBuffer, v: FloatArray, at: Int, tensor: Tensor, bits: Int) {
        if (tensor.shape.size < 2) {
            for (i in at until at + tensor.size) out.putFloat(v[i])
            return
        }
        val rows = tensor.shape[0]
        val row = tensor.size / rows
        val low = FloatArray(rows) { r -> (0 until row).minOf { v[at + r * row + it] } }
        val high = FloatArray(rows) { r -> (0 until row).maxOf { v[at + r * row + it] } }
        if (low.any { abs(it) >= HUGE } || high.any { abs(it) >= HUGE }) {
            throw CodecException("tensor '${tensor.name}' holds a magnitude above $HUGE, which is no update")
        }
        val last = (1 shl bits) - 1
        val scale = FloatArray(rows) { (high[it] - low[it]) / last }
        for (x in scale) out.putFloat(x)
        for (x in low) out.putFloat(x)
        val codes = ByteArray((tensor.size * bits + 7) / 8)
        for (i in 0 until tensor.size) {
            val r = i / row
            val code = if (scale[r] > 0) Math.rint(((v[at + i] - low[r]) / scale[r]).toDouble()).toInt().coerceIn(0, last) else 0
            codes[i * bits / 8] = (codes[i * bits / 8].toInt() or (code shl (i * bits % 8))).toByte()
        }
        out.put(codes)
    }

    /** The vector, every value finite; throws [covey.core.PayloadException] for anything that [encode] does not write. */
    fun decode(payload: ByteArray, layout: Layout, bits: Int): FloatArray {
        val entries = openHeader(payload, MAGIC, HEADER, layout.size, layout.shortId, layout.size)
        val fields = Fields(payload, 20, 8)
        val got = fields.u32()
        if (entries != layout.size || got != bits.toLong()) {
            refuse("the payload has ${grouped(entries)} entries of $got bits; ${grouped(layout.size)} of $bits bits are expected")
        }
        val body = payload.size - HEADER
        val wanted = maxBytes(layout, bits) - HEADER
        if (body < wanted) refuse("the payload has ${grouped(body)} bytes of codes, the layout needs ${grouped(wanted)}")
        checkEnd(payload, HEADER + wanted.toInt())
        if (crc(payload, HEADER, payload.size) != fields.u32()) {
            refuse("the payload does not match its checksum; it was damaged on the way")
        }
        val out = FloatArray(layout.size)
        var at = HEADER
        layout.tensors.forEachIndexed { i, tensor ->
            val size = bytesOf(tensor, bits).toInt()
            decodeTensor(Section(payload, at, at + size), out, layout.offsets[i], tensor, bits)
            at += size
        }
        return out
    }

    private fun decodeTensor(piece: Section, out: FloatArray, at: Int, tensor: Tensor, bits: Int) {
        val buffer = piece.buffer()
        if (tensor.shape.size < 2) {
            for (i in 0 until tensor.size) out[at + i] = buffer.float
        } else {
            val rows = tensor.shape[0]
            val scale = FloatArray(rows) { buffer.float }
            val low = FloatArray(rows) { buffer.float }
            val codes = 8 * rows
            val padding = 8 * (piece.size - codes) - tensor.size * bits
            if (padding > 0 && piece[piece.size - 1] ushr (8 - padding) != 0) {
                refuse("the codes of tensor '${tensor.name}' end with padding bits that are not zero")
            }
            if (scale.any { !it.isFinite() || it.toRawBits() < 0 } || low.any { !it.isFinite() }) {
                refuse("tensor '${tensor.name}' has a scale that is negative or not finite, or such an offset")
            }
            val row = tensor.size / rows
            for (i in 0 until tensor.size) {
                val code = (piece[codes + i * bits / 8] ushr (i * bits % 8)) and ((1 shl bits) - 1)
                val scaled = code.toFloat() * scale[i / row]
                out[at + i] = scaled + low[i / row]
            }
        }
        if ((0 until tensor.size).any { !out[at + it].isFinite() }) {
            refuse("tensor '${tensor.name}' decodes to a value that is not finite")
        }
    }

    private fun bytesOf(tensor: Tensor, bits: Int): Long =
        if (tensor.shape.size < 2) 4L * tensor.size else 8L * tensor.shape[0] + (tensor.size.toLong() * bits + 7) / 8
}
