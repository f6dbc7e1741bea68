package covey.core.client

import java.security.KeyFactory
import java.security.KeyPairGenerator
import java.security.PrivateKey
import java.security.Signature
import java.security.interfaces.ECPublicKey
import java.security.spec.ECGenParameterSpec
import java.security.spec.PKCS8EncodedKeySpec
import java.security.spec.X509EncodedKeySpec

/** A P-256 key in memory, for a JVM without a key store: its bytes can be read, so keep its file to yourself. */
class SoftwareKey private constructor(private val private: PrivateKey, private val public: ECPublicKey) : DeviceKey {
    override val publicText: String get() = publicKeyText(public)

    override fun sign(message: ByteArray): ByteArray = Signature.getInstance("SHA256withECDSA").run {
        initSign(private)
        update(message)
        sign()
    }

    /** PKCS 8 of the private half and X.509 of the public one. */
    fun encoded(): Pair<ByteArray, ByteArray> = private.encoded to public.encoded

    companion object {
        /** A new key from the system's randomness. */
        fun generate(): SoftwareKey {
            val pair = KeyPairGenerator.getInstance("EC").apply { initialize(ECGenParameterSpec("secp256r1")) }.generateKeyPair()
            return SoftwareKey(pair.private, pair.public as ECPublicKey)
        }

        /** The inverse of [encoded]. */
        fun of(private: ByteArray, public: ByteArray): SoftwareKey = KeyFactory.getInstance("EC").run {
            SoftwareKey(generatePrivate(PKCS8EncodedKeySpec(private)), generatePublic(X509EncodedKeySpec(public)) as ECPublicKey)
        }
    }
}

/** A public key as the server writes it: `p256:` and base64url, without padding, of the uncompressed point. */
fun publicKeyText(key: ECPublicKey): String {
    val coordinate = { x: java.math.BigInteger ->
        val bytes = x.toByteArray() // may carry a sign byte, or be short
        ByteArray(32).also { out -> for (i in 0 until minOf(32, bytes.size)) out[31 - i] = bytes[bytes.size - 1 - i] }
    }
    return "p256:" + base64Url(byteArrayOf(4) + coordinate(key.w.affineX) + coordinate(key.w.affineY))
}
