// Threads that compute together: a caller goes through the steps of some work; a shared step has a part for each thread. A part stays with its
// thread from step to step, so that what it wrote is in its cache; the caller computes the parts of threads that have not begun when its own is
// done, so that a thread without a processor costs little. Between runs the threads spin for a moment and then sleep.
//
//   Team team(2);
//   if (team.take()) { team.run(work, argument, steps, shared); team.release(); }
//
// work(argument, step, part, thread) computes a part; a step that is not shared has part 0 alone. A step begins when all parts of the one before
// are done. The caller is thread 0. One caller has the team at a time; `take` says whether it is this one.

#include <pthread.h>
#include <sched.h>

struct Team {
  typedef void (*Work)(void *argument, int step, int part, int thread);
  static constexpr int SPINS = 4000;  // before a thread sleeps: about 100 microseconds
  static constexpr int YIELD = 1000;  // spins of the caller before the thread that it waits for gets its processor

  explicit Team(int wanted) : size(wanted), members(new Member[wanted]) {
    pthread_mutex_init(&mutex, nullptr);
    pthread_cond_init(&wake, nullptr);
    for (int i = 1; i < size; i++) {
      members[i].team = this;
      members[i].thread = i;
      members[i].started = pthread_create(&members[i].id, nullptr, live, &members[i]) == 0;
    }
  }

  ~Team() {
    pthread_mutex_lock(&mutex);
    __atomic_store_n(&stopped, 1, __ATOMIC_SEQ_CST);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&mutex);
    for (int i = 1; i < size; i++) {
      if (members[i].started) pthread_join(members[i].id, nullptr);
    }
    delete[] members;
    pthread_cond_destroy(&wake);
    pthread_mutex_destroy(&mutex);
  }

  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  bool take() { return !__atomic_exchange_n(&taken, 1, __ATOMIC_ACQUIRE); }
  void release() { __atomic_store_n(&taken, 0, __ATOMIC_RELEASE); }

  void run(Work function, void *with, int steps, const bool *shared) {
    work = function, argument = with;
    for (step = 0; step < steps; step++) {
      if (!shared[step]) {
        work(argument, step, 0, 0);
        continue;
      }
      turn++;
      for (int i = 1; i < size; i++) __atomic_store_n(&members[i].offer, 2 * turn, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&sleeping, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&mutex);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&mutex);
      }
      work(argument, step, 0, 0);
      for (int i = 1; i < size; i++) {
        if (members[i].claim()) {
          work(argument, step, i, 0);
          __atomic_store_n(&members[i].done, turn, __ATOMIC_RELAXED);
        }
      }
      for (int i = 1; i < size; i++) {
        for (int spins = 0; __atomic_load_n(&members[i].done, __ATOMIC_ACQUIRE) != turn; spins++) {
          if (spins < YIELD) {
            relax();
          } else {
            sched_yield();
          }
        }
      }
    }
  }

 private:
  struct alignas(64) Member {
    Team *team;
    int thread;
    pthread_t id;
    bool started;
    alignas(64) uint64_t offer = 0;  // twice the turn of the part that is offered, and 1 more once it is claimed
    alignas(64) uint64_t done = 0;   // the turn of the part that is done

    bool open() const {
      const uint64_t now = __atomic_load_n(&offer, __ATOMIC_SEQ_CST);
      return now && now % 2 == 0;
    }

    // The thread that claims a part computes it; the step waits for it.
    bool claim() {
      uint64_t now = __atomic_load_n(&offer, __ATOMIC_ACQUIRE);
      return now && now % 2 == 0 && __atomic_compare_exchange_n(&offer, &now, now + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
  };

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  static void *live(void *member) {
    Member &own = *static_cast<Member *>(member);
    Team &team = *own.team;
    for (int spins = 0; !__atomic_load_n(&team.stopped, __ATOMIC_ACQUIRE); spins++) {
      if (own.claim()) {
        const uint64_t now = __atomic_load_n(&own.offer, __ATOMIC_RELAXED) / 2;
        team.work(team.argument, team.step, own.thread, own.thread);
        __atomic_store_n(&own.done, now, __ATOMIC_RELEASE);
        spins = 0;
      } else if (spins < SPINS) {
        relax();
      } else {
        team.sleep(own);
        spins = 0;
      }
    }
    return nullptr;
  }

  void sleep(const Member &own) {
    pthread_mutex_lock(&mutex);
    __atomic_add_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    while (!own.open() && !__atomic_load_n(&stopped, __ATOMIC_SEQ_CST)) pthread_cond_wait(&wake, &mutex);
    __atomic_sub_fetch(&sleeping, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&mutex);
  }

  const int size;
  Member *members;
  Work work = nullptr;
  void *argument = nullptr;
  int step = 0;
  uint64_t turn = 0;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  alignas(64) int sleeping = 0;
  alignas(64) int taken = 0;
  int stopped = 0;
};
