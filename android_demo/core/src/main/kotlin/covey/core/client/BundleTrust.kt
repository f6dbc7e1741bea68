package covey.core.client

import covey.core.BundleException
import covey.core.Reason
import covey.core.because
import covey.core.wire.Form
import covey.core.wire.Kind
import covey.core.wire.Message
import covey.core.wire.Values
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.NoSuchAlgorithmException
import java.security.Signature
import java.security.spec.X509EncodedKeySpec

/** The keys whose bundles this device takes from now on. */
data class TrustedKeys(val keys: List<String>) : Message {
    override val form get() = TrustedKeys
    override fun fields() = listOf(keys)

    companion object : Form<TrustedKeys>("TrustedKeys", "keys" to Kind.ListOf(Kind.Text)) {
        override fun make(v: Values) = TrustedKeys(v["keys"])
    }
}

/**
 * Whose bundle this device trains: the keys of the first signed bundle that it sees are kept, and one of them is required
 * from then on (trust on first use, as ssh has it). Whoever takes over the server later cannot send another bundle. A
 * bundle without a signature is taken as long as nothing was kept.
 */
class BundleTrust(private val folder: StateFolder, private val notice: (String) -> Unit) {
    /** Refuses a manifest that none of the kept keys signed; else remembers whom to trust. [signatures]: the signature file. */
    fun check(manifest: ByteArray, signatures: ByteArray) {
        val kept = folder.load(FILE, TrustedKeys) { throw BundleException("the keys to trust cannot be read ($it): leave the task and join again") }
        val lines = parse(signatures)
        if (kept == null) first(manifest, lines) else again(manifest, lines, kept.keys)
    }

    private fun again(manifest: ByteArray, lines: List<Pair<String, ByteArray>>, kept: List<String>) {
        val holds = lines.any { (key, signature) -> key in kept && verified(key, manifest, signature) == true }
        if (!holds) {
            throw BundleException(
                "the bundle is not signed by the key that this device has trusted since it first saw it: ask who exported it, " +
                    "and if that key did change, leave the task and join again",
            ).because(Reason.BUNDLE_SIGNATURE)
        }
    }

    private fun first(manifest: ByteArray, lines: List<Pair<String, ByteArray>>) {
        val results = lines.map { (key, signature) -> key to verified(key, manifest, signature) }
        results.firstOrNull { it.second == false }?.let {
            throw BundleException("the bundle's signature by ${it.first} does not hold: do not use this bundle").because(Reason.BUNDLE_SIGNATURE)
        }
        val known = results.filter { it.second == true }.map { it.first }
        if (known.isEmpty()) {
            if (lines.isNotEmpty()) notice("this phone cannot check the kind of signature that the bundle has; it is taken as unsigned")
            return
        }
        folder.save(FILE, TrustedKeys(known))
        notice("the bundle is signed by ${known.joinToString()}, seen for the first time: required from here on")
    }

    companion object {
        private const val FILE = "bundle-keys"
        private const val MAX_SIGNERS = 16
        private val DOMAIN = "covey bundle manifest v1\u0000".toByteArray()

        /** What comes before a raw key in its X.509 form. */
        private val P256_PREFIX = bytes("3059301306072a8648ce3d020106082a8648ce3d030107034200")
        private val ED25519_PREFIX = bytes("302a300506032b6570032100")

        /** No signature file is longer. */
        const val MAX_BYTES = 4096L

        /** Whether the key's owner signed this manifest; null where this platform does not know the kind of key. */
        internal fun verified(key: String, manifest: ByteArray, signature: ByteArray): Boolean? {
            val raw = fromBase64Url(key.substringAfter(':')) ?: return false
            val p256 = key.startsWith("p256:")
            if (raw.size != if (p256) 65 else 32) return false
            return try {
                val encoded = X509EncodedKeySpec((if (p256) P256_PREFIX else ED25519_PREFIX) + raw)
                val public = KeyFactory.getInstance(if (p256) "EC" else "Ed25519").generatePublic(encoded)
                Signature.getInstance(if (p256) "SHA256withECDSA" else "Ed25519").run {
                    initVerify(public)
                    update(DOMAIN)
                    update(manifest)
                    verify(signature)
                }
            } catch (_: NoSuchAlgorithmException) {
                null
            } catch (_: GeneralSecurityException) {
                false
            }
        }

        /** The lines of a signature file: the signer's key as text, and its signature. */
        internal fun parse(data: ByteArray): List<Pair<String, ByteArray>> {
            if (data.isEmpty()) return emptyList()
            val lines = data.toString(Charsets.US_ASCII).split('\n')
            if (lines.last().isNotEmpty() || lines.size > MAX_SIGNERS + 1) damaged()
            return lines.dropLast(1).map { line ->
                val key = line.substringBefore(' ')
                if (!key.startsWith("p256:") && !key.startsWith("ed25519:")) damaged()
                key to (fromBase64(line.substringAfter(' ', "")) ?: damaged())
            }
        }

        private fun damaged(): Nothing = throw BundleException("the bundle's signature file is damaged")

        private fun bytes(hex: String) = hex.chunked(2).map { it.toInt(16).toByte() }.toByteArray()
    }
}
