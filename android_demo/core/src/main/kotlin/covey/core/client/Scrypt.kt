package covey.core.client

import java.nio.ByteBuffer
import java.nio.ByteOrder
import javax.crypto.Mac
import javax.crypto.spec.SecretKeySpec

/** A key from a passphrase whose guesses cost time and 128 [n] [r] bytes of memory (RFC 7914); Android has none of its own. */
internal fun scrypt(passphrase: ByteArray, salt: ByteArray, n: Int, r: Int, p: Int, length: Int): ByteArray {
    val blocks = pbkdf2(passphrase, salt, p * 128 * r)
    for (i in 0 until p) {
        val part = ByteBuffer.wrap(blocks, i * 128 * r, 128 * r).slice().order(ByteOrder.LITTLE_ENDIAN)
        val words = IntArray(32 * r) { part.getInt(4 * it) }
        romix(words, n)
        for (at in words.indices) part.putInt(4 * at, words[at])
    }
    return pbkdf2(passphrase, blocks, length)
}

/** PBKDF2 over HMAC-SHA-256 with one iteration, over bytes: the platforms' own take characters. */
private fun pbkdf2(passphrase: ByteArray, salt: ByteArray, length: Int): ByteArray {
    val mac = Mac.getInstance("HmacSHA256").apply { init(SecretKeySpec(passphrase, "HmacSHA256")) }
    val out = ByteArray(length)
    for (block in 0 until (length + 31) / 32) {
        mac.update(salt)
        val number = ByteBuffer.allocate(4).putInt(block + 1).array()
        val piece = mac.doFinal(number)
        piece.copyInto(out, 32 * block, 0, minOf(32, length - 32 * block))
    }
    return out
}

private fun romix(x: IntArray, n: Int) {
    val kept = IntArray(n * x.size)
    val beside = IntArray(x.size)
    val block = IntArray(16)
    for (i in 0 until n) {
        x.copyInto(kept, i * x.size)
        blockMix(x, beside, block)
    }
    for (i in 0 until n) {
        val from = (x[x.size - 16] and (n - 1)) * x.size
        for (at in x.indices) x[at] = x[at] xor kept[from + at]
        blockMix(x, beside, block)
    }
}

/** Salsa20/8 over blocks of 16 words, the even ones in front of the odd ones after it. */
private fun blockMix(x: IntArray, beside: IntArray, block: IntArray) {
    val count = x.size / 16
    x.copyInto(block, 0, x.size - 16, x.size)
    for (i in 0 until count) {
        for (at in 0 until 16) block[at] = block[at] xor x[16 * i + at]
        salsa8(block)
        block.copyInto(beside, 16 * (i / 2 + (i % 2) * (count / 2)))
    }
    beside.copyInto(x)
}

private fun salsa8(block: IntArray) {
    val x = block.copyOf()
    fun turn(to: Int, a: Int, b: Int, by: Int) { x[to] = x[to] xor Integer.rotateLeft(x[a] + x[b], by) }
    fun quarter(a: Int, b: Int, c: Int, d: Int) {
        turn(b, a, d, 7)
        turn(c, b, a, 9)
        turn(d, c, b, 13)
        turn(a, d, c, 18)
    }
    repeat(4) {
        quarter(0, 4, 8, 12); quarter(5, 9, 13, 1); quarter(10, 14, 2, 6); quarter(15, 3, 7, 11)
        quarter(0, 1, 2, 3); quarter(5, 6, 7, 4); quarter(10, 11, 8, 9); quarter(15, 12, 13, 14)
    }
    for (at in 0 until 16) block[at] += x[at]
}
