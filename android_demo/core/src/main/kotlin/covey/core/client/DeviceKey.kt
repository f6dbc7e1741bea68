package covey.core.client

/**
 * The key pair that this device enrolled with: ECDSA on P-256 with SHA-256. On a phone Android's Keystore holds the
 * private half and never gives it out, hence the interface; `SoftwareKey` is for the JVM and for tests.
 */
interface DeviceKey {
    /** The public key as the server writes it: `p256:` and base64url of the 65-byte uncompressed point, no padding. */
    val publicText: String

    /** A DER signature over the SHA-256 of the message. */
    fun sign(message: ByteArray): ByteArray
}
