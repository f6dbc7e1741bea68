package covey.core.client

import covey.core.Reason
import covey.core.ServerException
import covey.core.UsageException
import covey.core.because
import covey.core.model.hex
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.GeneralSecurityException
import java.security.MessageDigest
import java.security.SecureRandom
import javax.crypto.Cipher
import javax.crypto.spec.GCMParameterSpec
import javax.crypto.spec.SecretKeySpec

/** What a vault holds: the personal entries' bytes, and a number that grows with each backup. */
class Kept(val content: ByteArray, val sequence: Long)

/**
 * What a device keeps for itself, encrypted here, for a server that can store and delete it but not read it: the same bytes
 * as Python's `covey_edge.vault`, which says how they are made. [task] and [client], of whose tensors they are, are
 * authenticated with the content.
 */
class Vault(private val passphrase: String, private val task: String, private val client: String) {
    init {
        val count = passphrase.codePointCount(0, passphrase.length)
        if (count < SHORTEST) throw UsageException("the vault's passphrase has $count characters; use at least $SHORTEST").because(Reason.PASSPHRASE)
    }

    private val names: ByteArray
        get() = listOf(task, client).map { it.toByteArray() }.fold(ByteArray(0)) { all, name -> all + little(4).putInt(name.size).array() + name }

    /** 64 hex digits under which the server keeps the vault: only who has the passphrase can compute them. */
    fun address(): String {
        val digest = MessageDigest.getInstance("SHA-256").run { update("covey vault address".toByteArray()); digest(names) }
        return hex(derive(digest.copyOf(16), N, R, P))
    }

    /** The bytes that the server stores. */
    fun seal(kept: Kept): ByteArray {
        val random = SecureRandom()
        val fresh = { size: Int -> ByteArray(size).also(random::nextBytes) }
        val (salt, wrapNonce, nonce) = listOf(fresh(16), fresh(12), fresh(12))
        val key = fresh(32)
        val cost = little(12).putInt(N).putInt(R).putInt(P).array()
        val wrapped = gcm(Cipher.ENCRYPT_MODE, derive(salt, N, R, P), wrapNonce, key, MAGIC + cost + names)!!
        val head = MAGIC + little(2).putShort(HEADER.toShort()).array() + cost + salt + wrapNonce + wrapped
        val plain = little(paddedSize(16 + kept.content.size)).putLong(kept.sequence).putLong(kept.content.size.toLong()).put(kept.content).array()
        return head + nonce + gcm(Cipher.ENCRYPT_MODE, key, nonce, plain, head + names)!!
    }

    /** The content; throws [ServerException] for bytes that are damaged, of another device or task, or another passphrase. */
    fun open(sealed: ByteArray): Kept {
        val header = MAGIC + little(2).putShort(HEADER.toShort()).array()
        if (sealed.size < PREFIX + 28 || !sealed.copyOf(6).contentEquals(header)) {
            throw ServerException("the vault that the server returned is none that this version of covey wrote")
        }
        val (n, r, p) = ByteBuffer.wrap(sealed, 6, 12).order(ByteOrder.LITTLE_ENDIAN).let { listOf(it.int, it.int, it.int) }
        if (!reasonable(n, r, p)) throw ServerException("the vault asks for scrypt with n=$n, r=$r, p=$p, which this device refuses to compute")
        val part = { from: Int, length: Int -> sealed.copyOfRange(from, from + length) }
        val wrapping = derive(part(18, 16), n, r, p)
        val key = gcm(Cipher.DECRYPT_MODE, wrapping, part(34, 12), part(46, 48), MAGIC + part(6, 12) + names)
        val plain = key?.let { gcm(Cipher.DECRYPT_MODE, it, part(PREFIX, 12), sealed.copyOfRange(PREFIX + 12, sealed.size), part(0, PREFIX) + names) }
            ?: throw ServerException("the vault does not open: the passphrase is another, or it belongs to another device or task, or it was damaged")
                .because(Reason.VAULT)
        return unpadded(plain)
    }

    private fun unpadded(plain: ByteArray): Kept {
        val fields = ByteBuffer.wrap(plain).order(ByteOrder.LITTLE_ENDIAN)
        val (sequence, length) = if (plain.size >= 16) fields.long to fields.long else 0L to -1L
        val sound = length in 0..plain.size - 16L && plain.size == paddedSize(16 + length.toInt()) &&
            (16 + length.toInt() until plain.size).all { plain[it] == 0.toByte() }
        if (!sound) throw ServerException("the vault's content is not padded as this version of covey does")
        return Kept(plain.copyOfRange(16, 16 + length.toInt()), sequence)
    }

    private fun derive(salt: ByteArray, n: Int, r: Int, p: Int) = scrypt(passphrase.toByteArray(), salt, n, r, p, 32)

    companion object {
        private val MAGIC = "CVV1".toByteArray()
        private const val HEADER = 88
        private const val PREFIX = 6 + HEADER
        private const val N = 1 shl 15 // 32 MB of memory
        private const val R = 8
        private const val P = 1
        private const val MAX_MEMORY = 1L shl 27 // what a hostile header may ask for
        private const val SMALLEST = 1024
        private const val SHORTEST = 8

        /** The next of 1024, 1152, 1280, ... 2048, 2304, ...: a size says little about what is inside. */
        internal fun paddedSize(length: Int): Int {
            if (length <= SMALLEST) return SMALLEST
            val step = 1 shl (32 - Integer.numberOfLeadingZeros(length - 1) - 4)
            return (length + step - 1) / step * step
        }

        /** Bytes that the server stores for so many bytes of content. */
        fun sealedSize(content: Int): Int = PREFIX + 12 + paddedSize(16 + content) + 16

        private fun reasonable(n: Int, r: Int, p: Int) =
            n >= 1 shl 14 && n and (n - 1) == 0 && r in 1..64 && p in 1..16 && 128L * n * r <= MAX_MEMORY

        private fun little(size: Int): ByteBuffer = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)

        /** AES-256-GCM; null where the tag does not fit. */
        private fun gcm(mode: Int, key: ByteArray, nonce: ByteArray, data: ByteArray, authenticated: ByteArray): ByteArray? = try {
            Cipher.getInstance("AES/GCM/NoPadding").run {
                init(mode, SecretKeySpec(key, "AES"), GCMParameterSpec(128, nonce))
                updateAAD(authenticated)
                doFinal(data)
            }
        } catch (_: GeneralSecurityException) {
            null
        }
    }
}
