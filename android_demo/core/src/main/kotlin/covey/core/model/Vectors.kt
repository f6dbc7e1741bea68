package covey.core.model

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest

/** Little-endian bytes of float32 values, as every vector is stored and hashed. */
fun FloatArray.toLittleEndian(): ByteArray {
    val out = ByteBuffer.allocate(4 * size).order(ByteOrder.LITTLE_ENDIAN)
    out.asFloatBuffer().put(this)
    return out.array()
}

/** Float32 values from little-endian bytes; left-over bytes are ignored. */
fun floatsOf(bytes: ByteArray): FloatArray {
    val out = FloatArray(bytes.size / 4)
    ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(out)
    return out
}

/** SHA-256 in lower-case hex. */
fun sha256(bytes: ByteArray): String = hex(MessageDigest.getInstance("SHA-256").digest(bytes))

/** The identity of an adapter version: SHA-256 of its little-endian bytes. */
fun vectorDigest(vector: FloatArray): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val piece = ByteBuffer.allocate(1 shl 16).order(ByteOrder.LITTLE_ENDIAN)
    var at = 0
    while (at < vector.size) { // in pieces: the vector may be large, and the phone's memory is not
        val count = minOf(piece.capacity() / 4, vector.size - at)
        piece.clear()
        piece.asFloatBuffer().put(vector, at, count)
        digest.update(piece.array(), 0, 4 * count)
        at += count
    }
    return hex(digest.digest())
}

/** Lower-case hex. */
fun hex(bytes: ByteArray): String {
    val digits = "0123456789abcdef"
    val out = StringBuilder(2 * bytes.size)
    for (byte in bytes) out.append(digits[(byte.toInt() shr 4) and 15]).append(digits[byte.toInt() and 15])
    return out.toString()
}
