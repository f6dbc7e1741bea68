package covey.app

import android.content.Context
import covey.core.BundleException
import covey.core.CoveyException
import covey.core.Reason

/**
 * Errors in the language of the phone. Each reason of :core has a sentence, and so has each refusal of a server that a
 * person can do something about; what is left is told with the English of the log in it.
 */
class Sentences(private val context: Context) {
    /** The sentence for a screen. */
    fun of(error: CoveyException): String {
        val reason = error.reason ?: return context.getString(if (error is BundleException) R.string.error_bundle else R.string.error_other, error.sentence)
        if (reason == Reason.REFUSED) return refused(error.arguments[0], error.arguments[1])
        return context.getString(resource(reason), *error.arguments.toTypedArray())
    }

    /** A refusal of the server, by its [code]. */
    fun refused(code: String, sentence: String): String = REFUSALS[code]?.let(context::getString) ?: context.getString(R.string.refused_other, sentence)

    private fun resource(reason: Reason): Int = when (reason) {
        Reason.UNREACHABLE -> R.string.error_unreachable
        Reason.NOT_TRUSTED -> R.string.error_not_trusted
        Reason.NOT_A_SERVER -> R.string.error_not_a_server
        Reason.OTHER_VERSION -> R.string.error_other_version
        Reason.ADDRESS -> R.string.error_address
        Reason.CODE -> R.string.error_code
        Reason.INVITATION -> R.string.error_invitation
        Reason.REFUSED -> R.string.refused_other
        Reason.BUNDLE_TARGET -> R.string.error_bundle_target
        Reason.BUNDLE_DIGEST -> R.string.error_bundle_digest
        Reason.BUNDLE_NEWER -> R.string.error_bundle_newer
        Reason.BUNDLE_CHANGED -> R.string.error_bundle_changed
        Reason.BUNDLE_SIGNATURE -> R.string.error_bundle_signature
        Reason.TOKENIZER -> R.string.error_tokenizer
        Reason.TASK_KIND -> R.string.error_task_kind
        Reason.DATA_SMALL -> R.string.error_data_small
        Reason.DATA_NONE -> R.string.error_data_none
        Reason.DATA_RECORD -> R.string.error_data_record
        Reason.DATA_LABEL -> R.string.error_data_label
        Reason.SPACE -> R.string.error_space
        Reason.DISK -> R.string.error_disk
        Reason.STATE_NEWER -> R.string.error_state_newer
        Reason.LOSS -> R.string.error_loss
        Reason.UPDATE_SIZE -> R.string.error_update_size
        Reason.VAULT -> R.string.error_vault
        Reason.PASSPHRASE -> R.string.error_passphrase
    }

    private companion object {
        val REFUSALS = mapOf(
            "unknown_device" to R.string.refused_unknown_device, "bad_code" to R.string.refused_bad_code,
            "revoked" to R.string.refused_revoked, "name_taken" to R.string.refused_name_taken, "late" to R.string.refused_late,
            "stale" to R.string.refused_late, "not_assigned" to R.string.refused_late, "conflict" to R.string.refused_conflict,
            "wrong_layout" to R.string.refused_wrong_layout, "wrong_version" to R.string.refused_wrong_layout,
            "wrong_codec" to R.string.refused_wrong_layout, "too_large" to R.string.refused_too_large,
            "bad_payload" to R.string.refused_bad_payload, "not_found" to R.string.refused_not_found,
        )
    }
}
