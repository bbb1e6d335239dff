// Package updater keeps workloads on the image their policy names, and puts
// them back when that image is bad.
//
// A pass has three steps. Look: the backend lists what runs, the registry says
// what there is, each distinct question asked once. Decide: decide is a pure
// function from those answers, the workload's settings and what is remembered
// of it to a [Decision], which always carries a [Reason]. Carry out: one
// driver takes a [Change] through its phases,
//
//	preparing ─▶ applying ─▶ judging ─▶ committing ─▶ committed
//	     └──────────┴───────────┴──▶ restoring ─▶ restored or failed
//
// and is the only caller of what changes the world. Every phase that ends in
// -ing is in the journal before its effect, and every effect may be repeated,
// so the driver goes on after a crash exactly as it would have without one.
//
// The package owns the words of the domain and declares the interfaces it
// needs: [Backend], [State], [Journal], [Registry], [Notifier]
// and [Observer].
package updater
