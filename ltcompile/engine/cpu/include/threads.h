// A team of threads that run one function together. Between two runs its threads spin for a moment and then sleep.
//
//   Team team(2);
//   if (team.take()) { team.run(work, argument); team.release(); }   // work(argument, thread) on each thread, 0 is the caller
//
// Inside of `work`, `barrier` waits for all threads. One caller has the team at a time; `take` says whether it is this one.

#include <pthread.h>
#include <sched.h>

struct Team {
  typedef void (*Work)(void *argument, int thread);
  static constexpr int SPINS = 4000;   // before a thread sleeps: about 100 microseconds
  static constexpr int YIELD = 2000;   // spins in a barrier before the thread that is waited for gets this core

  explicit Team(int wanted) : size(wanted) {
    pthread_mutex_init(&mutex, nullptr);
    pthread_cond_init(&wake, nullptr);
    members = new Member[size];
    for (int i = 1; i < size; i++) {
      members[i] = {this, i, {}, false};
      members[i].started = pthread_create(&members[i].id, nullptr, live, &members[i]) == 0;
      if (!members[i].started) failed = true;
    }
  }

  ~Team() {
    __atomic_store_n(&stopped, 1, __ATOMIC_SEQ_CST);
    start();
    for (int i = 1; i < size; i++) {
      if (members[i].started) pthread_join(members[i].id, nullptr);
    }
    delete[] members;
    pthread_cond_destroy(&wake);
    pthread_mutex_destroy(&mutex);
  }

  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  bool take() { return !failed && !__atomic_exchange_n(&taken, 1, __ATOMIC_ACQUIRE); }
  void release() { __atomic_store_n(&taken, 0, __ATOMIC_RELEASE); }

  void run(Work function, void *with) {
    work = function;
    argument = with;
    start();
    function(with, 0);
    barrier();
  }

  void barrier() {
    const int now = __atomic_load_n(&phase, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&phase, now + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 0; __atomic_load_n(&phase, __ATOMIC_ACQUIRE) == now; spins++) {
      if (spins < YIELD) {
        relax();
      } else {
        sched_yield();
      }
    }
  }

 private:
  struct Member {
    Team *team;
    int thread;
    pthread_t id;
    bool started;
  };

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void start() {
    __atomic_add_fetch(&turn, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&sleeping, __ATOMIC_SEQ_CST)) {
      pthread_mutex_lock(&mutex);
      pthread_cond_broadcast(&wake);
      pthread_mutex_unlock(&mutex);
    }
  }

  void wait_for_turn(int last) {
    for (int spins = 0; spins < SPINS; spins++) {
      if (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != last) return;
      relax();
    }
    pthread_mutex_lock(&mutex);
    __atomic_add_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&turn, __ATOMIC_SEQ_CST) == last) pthread_cond_wait(&wake, &mutex);
    __atomic_sub_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&mutex);
  }

  static void *live(void *member) {
    Team &team = *static_cast<Member *>(member)->team;
    const int thread = static_cast<Member *>(member)->thread;
    for (int last = 0;; last++) {
      team.wait_for_turn(last);
      if (__atomic_load_n(&team.stopped, __ATOMIC_SEQ_CST)) return nullptr;
      team.work(team.argument, thread);
      team.barrier();
    }
  }

  const int size;
  Member *members = nullptr;
  Work work = nullptr;
  void *argument = nullptr;
  bool failed = false;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  alignas(64) int turn = 0;
  alignas(64) int sleeping = 0;
  alignas(64) int arrived = 0;
  alignas(64) int phase = 0;
  alignas(64) int taken = 0;
  int stopped = 0;
};
