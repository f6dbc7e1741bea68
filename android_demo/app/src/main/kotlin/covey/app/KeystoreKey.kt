package covey.app

import android.security.keystore.KeyGenParameterSpec
import android.security.keystore.KeyProperties
import covey.core.client.DeviceKey
import covey.core.client.publicKeyText
import java.security.KeyPairGenerator
import java.security.KeyStore
import java.security.PrivateKey
import java.security.Signature
import java.security.interfaces.ECPublicKey
import java.security.spec.ECGenParameterSpec

/**
 * The key of this phone in Android's Keystore: ECDSA on P-256, made here and never given out; on most phones it lies in
 * hardware of its own. A backup or another app cannot take it along.
 */
class KeystoreKey : DeviceKey {
    private val store = KeyStore.getInstance(PROVIDER).apply { load(null) }

    init {
        if (!store.containsAlias(ALIAS)) generate()
    }

    override val publicText: String get() = publicKeyText(store.getCertificate(ALIAS).publicKey as ECPublicKey)

    override fun sign(message: ByteArray): ByteArray = Signature.getInstance("SHA256withECDSA").run {
        initSign(store.getKey(ALIAS, null) as PrivateKey)
        update(message)
        sign()
    }

    private fun generate() {
        val spec = KeyGenParameterSpec.Builder(ALIAS, KeyProperties.PURPOSE_SIGN)
            .setAlgorithmParameterSpec(ECGenParameterSpec("secp256r1")).setDigests(KeyProperties.DIGEST_SHA256).build()
        KeyPairGenerator.getInstance(KeyProperties.KEY_ALGORITHM_EC, PROVIDER).apply { initialize(spec) }.generateKeyPair()
    }

    companion object {
        private const val PROVIDER = "AndroidKeyStore"
        private const val ALIAS = "covey-device"

        /** Forget this phone's key, when it leaves a task. */
        fun delete() = KeyStore.getInstance(PROVIDER).apply { load(null) }.deleteEntry(ALIAS)
    }
}
